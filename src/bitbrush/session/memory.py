"""How much memory this process holds."""

import os
import resource
import sys
from pathlib import Path

STATM = Path("/proc/self/statm")


def peak_resident_mib() -> float:
    """Highest resident memory of this process so far, MiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def resident_memory() -> int:
    """Bytes that this process holds now; the most so far where the system does not tell."""
    if not STATM.exists():
        return int(peak_resident_mib() * 2**20)
    return int(STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
