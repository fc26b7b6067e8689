"""Tensors that wait on the disk, mapped into memory, while nobody looks at them.

What calibration samples and suspended calls hold grows with their number. Put away, it takes address space alone: the
system brings back the pages that are touched, and :func:`release` hands them in again. All that of a small network has
room in memory, which saves up to a fifth of learned rounding's time.
"""

import ctypes
import mmap
import os
import sys
import tempfile
import weakref
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

SMALLEST = 1 << 16
"""Bytes from which on a tensor is worth a file."""
ROOM = 512 << 20
"""Bytes that may wait in memory all the same."""
_SUFFIX = ".spool"

Values = TypeVar("Values")


class Room:
    """Memory for tensors of ``size`` bytes, each of which has its place until it is gone."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._held: set[int] = set()

    def holds(self, storage: torch.UntypedStorage) -> bool:
        """Whether it has a place here, given to it now if there is one left."""
        key, size = id(storage), storage.nbytes()
        if key not in self._held and size <= self._left:
            self._held.add(key)
            self._left -= size
            weakref.finalize(storage, self._leave, key, size).atexit = False
        return key in self._held

    def _leave(self, key: int, size: int) -> None:
        self._held.discard(key)
        self._left += size


NO_ROOM = Room(0)


@dataclass(frozen=True)
class Spool:
    """Files in ``folder`` without a name, which end with the process whatever ends it; without a folder, memory.

    What ``room`` holds stays in memory.
    """

    folder: Path | None = None
    room: Room = NO_ROOM

    def put_away(self, values: Values) -> Values:
        """The same tensors, in any nesting, with their elements on the disk; views of one another stay so.

        Raises OSError where the disk is full.
        """
        groups: dict[int, dict[int, Tensor]] = defaultdict(dict)
        for value in tree_iter(values):
            if isinstance(value, Tensor) and value.device.type == "cpu":
                groups[value.untyped_storage().data_ptr()][id(value)] = value
        for group in groups.values():
            self._put_away(list(group.values()))
        return values

    def _put_away(self, views: list[Tensor]) -> None:
        storage = views[0].untyped_storage()
        if is_away(views[0]):
            release(views[0])
        elif self.folder is not None and storage.nbytes() >= SMALLEST and not self.room.holds(storage):
            mapped = self._mapped(torch.empty(0, dtype=torch.uint8).set_(storage))
            for view in views:
                place = (view.storage_offset(), view.size(), view.stride())
                view.data = torch.empty(0, dtype=view.dtype).set_(mapped, *place)

    def _mapped(self, data: Tensor) -> torch.UntypedStorage:
        # Written and not copied into the mapping: a full disk is an error then, and not the end of the process.
        descriptor, name = tempfile.mkstemp(_SUFFIX, dir=self.folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data.numpy().data)
            return torch.from_file(name, shared=True, size=data.nbytes, dtype=torch.uint8).untyped_storage()
        finally:
            Path(name).unlink()


IN_MEMORY = Spool()


class Following(TorchDispatchMode):
    """While entered, follows the tensors that are made, so that all still there can be put away."""

    def __init__(self, spool: Spool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._spool = spool
        self._known: list[weakref.ref[Tensor]] = []

    def follow(self, values: Any) -> None:
        """Tensors that were made elsewhere, too."""
        self._known += [weakref.ref(value) for value in tree_iter(values) if isinstance(value, Tensor)]

    def put_away(self) -> None:
        there = {id(value): value for known in self._known if (value := known()) is not None}
        self._spool.put_away(list(there.values()))
        self._known = [weakref.ref(value) for value in there.values()]

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        self.follow(output)
        return output


def is_away(tensor: Tensor) -> bool:
    """Whether its elements are in a file of a spool."""
    return (tensor.untyped_storage().filename or "").endswith(_SUFFIX)


def release(tensor: Tensor) -> None:
    """Frees the memory that a tensor's elements take; those of a spool are read from the disk again when needed."""
    if not is_away(tensor) or sys.platform != "linux":
        return
    storage = tensor.untyped_storage()
    _libc().madvise(ctypes.c_void_p(storage.data_ptr()), ctypes.c_size_t(storage.nbytes()), mmap.MADV_DONTNEED)


@cache  # tensors are released thousands of times
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
