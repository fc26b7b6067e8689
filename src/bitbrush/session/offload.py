"""Offloading of unused tensors to files that are mapped into memory.

Calibration samples and suspended calls hold tensors in proportion to their number. An offloaded tensor takes address
space only: the system reads the pages that are touched, and :func:`release` drops them again.

Small networks keep all of it in memory, within a budget, which saves up to a fifth of learned rounding's time.
Offloaded GPU tensors become CPU tensors; :func:`bring_to` returns them.
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

from bitbrush.session.disk import writing

CPU = torch.device("cpu")
SMALLEST = 1 << 16
"""Smallest tensor, in bytes, that is worth a file."""
BUDGET_BYTES = 512 << 20
"""Bytes of offloaded tensors that may stay in memory."""
_SUFFIX = ".offload"

Values = TypeVar("Values")


class OffloadBudget:
    """Memory of ``size`` bytes for tensors; each occupies its bytes until it is freed."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._reservations: set[int] = set()

    def holds(self, storage: torch.UntypedStorage) -> bool:
        """Reserves memory for a storage if enough is left, and tells whether it has a reservation."""
        key, size = id(storage), storage.nbytes()
        if key not in self._reservations and size <= self._free:
            self._reservations.add(key)
            self._free -= size
            weakref.finalize(storage, self._cancel, key, size).atexit = False
        return key in self._reservations

    def _cancel(self, key: int, size: int) -> None:
        self._reservations.discard(key)
        self._free += size


NO_BUDGET = OffloadBudget(0)


@dataclass(frozen=True)
class Offload:
    """Destination of offloaded tensors: unnamed files in ``folder``, or memory without a folder.

    The files vanish with the process, however it ends. Tensors within ``budget`` stay in memory.
    """

    folder: Path | None = None
    budget: OffloadBudget = NO_BUDGET

    def put(self, values: Values) -> Values:
        """Moves the elements of all tensors to disk, in place; tensors that share memory still share it.

        Without a folder, GPU tensors move to CPU memory.

        Args:
            values: Tensors in nested tuples, lists and dicts.

        Returns:
            ``values`` itself.

        Raises:
            DiskError: The disk is full.
        """
        for views in _by_storage(values):
            if views[0].device != CPU:
                _move(views, CPU)
            self._put(views)
        return values

    def _put(self, views: list[Tensor]) -> None:
        storage = views[0].untyped_storage()
        if is_offloaded(views[0]):
            release(views[0])
        elif self.folder is not None and storage.nbytes() >= SMALLEST and not self.budget.holds(storage):
            mapped = self._mapped(torch.empty(0, dtype=torch.uint8).set_(storage))
            for view in views:
                place = (view.storage_offset(), view.size(), view.stride())
                view.data = torch.empty(0, dtype=view.dtype).set_(mapped, *place)

    def _mapped(self, data: Tensor) -> torch.UntypedStorage:
        # A write fails with an error on a full disk; a copy into the mapping would kill the process.
        assert self.folder is not None
        with writing(self.folder, data.nbytes):
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(_SUFFIX, dir=self.folder)
        try:
            with writing(self.folder, data.nbytes), os.fdopen(descriptor, "wb") as file:
                file.write(data.numpy().data)
            return torch.from_file(name, shared=True, size=data.nbytes, dtype=torch.uint8).untyped_storage()
        finally:
            Path(name).unlink()


IN_MEMORY = Offload()


def bring_to(device: torch.device, values: Values) -> Values:
    """Moves the elements of all tensors to the device, in place; tensors that share memory still share it.

    Args:
        device: Destination; nothing moves if it is the CPU.
        values: Tensors in nested tuples, lists and dicts.

    Returns:
        ``values`` itself.
    """
    if device.type != "cpu":
        for views in _by_storage(values):
            if views[0].device != device:
                _move(views, device)
    return values


def _by_storage(values: Any) -> list[list[Tensor]]:
    """Groups the distinct tensors by the storage that they share."""
    groups: dict[int, dict[int, Tensor]] = defaultdict(dict)
    for value in tree_iter(values):
        if isinstance(value, Tensor) and not value.is_meta:
            groups[value.untyped_storage().data_ptr()][id(value)] = value
    return [list(group.values()) for group in groups.values()]


def _move(views: list[Tensor], device: torch.device) -> None:
    first = views[0]
    data = torch.empty(0, dtype=torch.uint8, device=first.device).set_(first.untyped_storage())
    storage = data.to(device).untyped_storage()
    for view in views:
        place = (view.storage_offset(), view.size(), view.stride())
        view.data = torch.empty(0, dtype=view.dtype, device=device).set_(storage, *place)


class TensorTracker(TorchDispatchMode):
    """Tracker of the tensors that are created while it is entered, so that those still alive can be offloaded.

    ``device`` is where the code inside computes.
    """

    def __init__(self, offload: Offload, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._offload, self._device = offload, device
        self._moved: list[weakref.ref[Tensor]] = []
        self._references: list[weakref.ref[Tensor]] = []

    def follow(self, values: Any) -> None:
        """Tracks tensors that were created elsewhere, too."""
        self._references += [weakref.ref(value) for value in tree_iter(values) if isinstance(value, Tensor)]

    def put(self) -> None:
        """Offloads all tracked tensors that are still alive."""
        tensors = {id(value): value for reference in self._references if (value := reference()) is not None}
        self._moved = [weakref.ref(value) for value in tensors.values() if value.device == self._device]
        self._offload.put(list(tensors.values()))
        self._references = [weakref.ref(value) for value in tensors.values()]

    def bring_back(self, values: Any) -> None:
        """Moves the tensors that :meth:`put` took from the device back to it, and ``values`` too."""
        bring_to(self._device, [*(value for moved in self._moved if (value := moved()) is not None), values])

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


def is_offloaded(tensor: Tensor) -> bool:
    """Tells whether the elements of a tensor are in an offload file."""
    return (tensor.untyped_storage().filename or "").endswith(_SUFFIX)


def release(tensor: Tensor) -> None:
    """Drops the memory pages of an offloaded tensor; the system reads them from the disk again when needed."""
    if not is_offloaded(tensor) or sys.platform != "linux":
        return
    storage = tensor.untyped_storage()
    _libc().madvise(ctypes.c_void_p(storage.data_ptr()), ctypes.c_size_t(storage.nbytes()), mmap.MADV_DONTNEED)


@cache  # release() runs thousands of times
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
