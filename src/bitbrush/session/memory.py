"""Memory of this process: resident bytes from psutil, the peak on POSIX from the standard library."""

import sys

import psutil


def resident_memory() -> int:
    """Returns the resident bytes of this process."""
    return int(psutil.Process().memory_info().rss)


def peak_resident_mib() -> float:
    """Returns the highest resident memory of this process so far, in MiB.

    psutil reports the peak on Windows only. Elsewhere it comes from ``getrusage``, which Windows lacks.
    """
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):
        return float(info.peak_wset / 2**20)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
