"""What glibc does with memory that is freed; other C libraries are left as they are.

Settings change in a process that is bitbrush's own, as the command line's is (:func:`allow_tuning`). A program that
calls bitbrush as a library keeps its allocator as it is.

By itself, glibc learns from the first large buffer that is freed to take all later ones from the heap: laying out a
denoiser's weights leaves it full of holes, hundreds of megabytes that nothing is in. Later, when nothing is laid out
any more, the opposite pays: a large buffer that was given back to the system is paid for in page faults when it is
asked for again, which is half of the time of a large linear layer.
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
"""Bytes of growth from which on giving back what is free is worth its time."""


@dataclass
class _Process:
    tunable: bool = False
    resident: int = 0
    """Bytes that the process had when it was last trimmed, or has fallen to since."""


_process = _Process()


def allow_tuning() -> None:
    """Declares this process bitbrush's own: from now on the functions below change glibc's settings.

    The command line calls it. A program that calls bitbrush may, before it loads or quantizes: it then takes as little
    memory and time as the command line. Without it the functions that change settings do nothing.
    """
    _process.tunable = True


def return_freed_memory() -> None:
    """From now on buffers of 256 KiB and more go back to the system when they are freed."""
    _set({_MMAP_MAX: 65536, _MMAP_THRESHOLD: _LARGE, _TRIM_THRESHOLD: _LARGE, _TOP_PAD: _LARGE})


def keep_freed_memory() -> None:
    """From now on freed memory stays with the process, but for what is free now."""
    _set({_MMAP_MAX: 0, _TRIM_THRESHOLD: _MOST, _TOP_PAD: 256 << 20})


def share_heap() -> None:
    """From now on threads take memory from the heaps that are there, and begin none of their own.

    Of the threads that hold suspended calls one runs at a time: nothing is gained by heaps apart, and what is freed in
    one of them serves no other.
    """
    _set({_ARENA_MAX: 1})


def trim() -> None:
    """What is free now goes back to the system.

    To be called where work repeats, as the heap grows with the number of rounds otherwise: likely because the small
    things that a round leaves behind settle in what it freed, where the large ones of the next then do not fit. Does
    nothing while the process has not grown by 32 MiB since the last time: looking through the heap takes milliseconds.
    It changes no setting, so it does its work in any process.
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
