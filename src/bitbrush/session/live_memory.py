"""Memory of tensors while some code runs, counted from torch's own calls: the same on every system.

No library counts this. psutil measures the process, which includes an allocator's holes and other threads, and torch's
own statistics cover GPUs only.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter


class LiveMemory(TorchDispatchMode):
    """Counter of the bytes of live tensors that were created while it is entered: ``now``, and the ``most`` so far.

    It excludes tensors that existed before, memory that a kernel needs within one call, and tensors created inside
    :func:`uncounted`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._storage_ids: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        input_ids = {id(storage) for storage in _storages((args, kwargs))}
        for storage in _storages(output):
            if id(storage) not in input_ids and id(storage) not in self._storage_ids:
                self._add(storage)
        return output

    def _add(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        self._storage_ids.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._remove, key, size).atexit = False

    def _remove(self, key: int, size: int) -> None:
        self._storage_ids.discard(key)
        self.now -= size


def uncounted() -> AbstractContextManager[None]:
    """Pauses counting while entered."""
    return _disable_current_modes()


def tensor_bytes(values: Any) -> int:
    """Sums the bytes of all tensors in nested tuples, lists and dicts."""
    return sum(value.nbytes for value in tree_iter(values) if isinstance(value, Tensor))


def _storages(values: Any) -> Iterator[Any]:
    return (value.untyped_storage() for value in tree_iter(values) if isinstance(value, Tensor))
