"""How much memory tensors take while some code runs, counted from torch's own calls: the same on every system.

Ours, as no library counts it: psutil tells what a process holds, in which an allocator's holes and other threads are
counted, and torch's own statistics are of GPUs alone.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter


class LiveMemory(TorchDispatchMode):
    """While entered, counts the bytes of tensors made since and still there: ``now``, and the ``most`` so far.

    What was there before is not counted, nor is what a kernel needs within one call, nor what is made within
    :func:`uncounted`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        given = {id(storage) for storage in _storages((args, kwargs))}
        for storage in _storages(output):
            if id(storage) not in given and id(storage) not in self._known:
                self._add(storage)
        return output

    def _add(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        self._known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._remove, key, size).atexit = False

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def uncounted() -> AbstractContextManager[None]:
    """While entered, nothing is counted."""
    return _disable_current_modes()


def tensor_bytes(values: Any) -> int:
    """Of all tensors in any nesting of tuples, lists and dicts."""
    return sum(value.nbytes for value in tree_iter(values) if isinstance(value, Tensor))


def _storages(values: Any) -> Iterator[Any]:
    return (value.untyped_storage() for value in tree_iter(values) if isinstance(value, Tensor))
