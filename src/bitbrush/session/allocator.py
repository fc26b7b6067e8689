"""Control of what glibc does with freed memory; other C libraries stay as they are.

Settings change only in a process that belongs to bitbrush, such as the command line (:func:`allow_tuning`). A program
that calls bitbrush as a library keeps its allocator settings.

By default, glibc raises its mmap threshold when the first large buffer is freed, and takes all later ones from the
heap. Laying out a denoiser's weights then leaves hundreds of megabytes of unused holes.

Once layouts are done, the opposite pays. A large buffer that was returned to the system costs page faults when it is
requested again. They take half of the time of a large linear layer.
"""

import ctypes
import platform
from dataclasses import dataclass
from functools import cache

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -2, -3, -4, -8
"""Parameters of ``mallopt(3)``, as ``malloc.h`` numbers them."""
_LARGE = 256 << 10
_MOST = 2**31 - 1
_WORTH = 32 << 20
"""Bytes of growth above which returning free memory is worth its time."""


@dataclass
class _Process:
    tunable: bool = False
    resident: int = 0
    """Resident bytes after the last trim, or the lowest number seen since."""


_process = _Process()


def allow_tuning() -> None:
    """Allows the functions below to change glibc's settings in this process.

    The command line calls it. A program that calls bitbrush may call it before it loads or quantizes. It then takes as
    little memory and time as the command line. Without it the functions that change settings do nothing.
    """
    _process.tunable = True


def return_freed_memory() -> None:
    """Makes glibc return freed buffers of 256 KiB and more to the system from now on."""
    _set({_MMAP_MAX: 65536, _MMAP_THRESHOLD: _LARGE, _TRIM_THRESHOLD: _LARGE, _TOP_PAD: _LARGE})


def keep_freed_memory() -> None:
    """Makes glibc keep memory that is freed from now on; memory that is free already is returned."""
    _set({_MMAP_MAX: 0, _TRIM_THRESHOLD: _MOST, _TOP_PAD: 256 << 20})


def share_heap() -> None:
    """Makes threads allocate from existing heaps instead of starting their own.

    Only one of the threads of suspended calls runs at a time, so separate heaps gain nothing. Memory freed in one of
    them could not be used by the others.
    """
    _set({_ARENA_MAX: 1})


def trim() -> None:
    """Returns free memory to the system.

    Repeated work calls it, as the heap otherwise grows with the number of rounds. A likely cause is that small
    leftovers of one round settle in its freed space, where the next round's large buffers then do not fit.

    It does nothing while the process has grown by less than 32 MiB since the last trim, because scanning the heap takes
    milliseconds. It changes no setting, so it works in any process.
    """
    from bitbrush.session.memory import resident_memory

    now = resident_memory()
    if now - _process.resident < _WORTH:
        _process.resident = min(_process.resident, now)
        return
    if library := _glibc():
        library.malloc_trim(0)
    _process.resident = resident_memory()


def _set(values: dict[int, int]) -> None:
    library = _glibc() if _process.tunable else None
    if library is None:
        return
    library.malloc_trim(0)
    for parameter, value in values.items():
        library.mallopt(parameter, value)


@cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
