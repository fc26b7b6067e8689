"""How much memory this process holds, as psutil reads it; a process's peak on POSIX is the standard library's."""

import sys

import psutil


def resident_memory() -> int:
    """Returns the bytes of memory that this process holds now."""
    return int(psutil.Process().memory_info().rss)


def peak_resident_mib() -> float:
    """Returns the highest resident memory of this process so far, in MiB.

    psutil knows the peak on Windows alone. Elsewhere it is ``getrusage``'s, which Windows lacks.
    """
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):
        return float(info.peak_wset / 2**20)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
