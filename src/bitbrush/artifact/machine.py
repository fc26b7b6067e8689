"""What this machine has left for a job."""

import os
import shutil
from pathlib import Path

from bitbrush.timeline.cost import peak_resident_mib

MEMINFO, STATM = Path("/proc/meminfo"), Path("/proc/self/statm")


def available_memory() -> int | None:
    """Bytes that can still be taken, free swap space included; None where the system does not tell (not Linux)."""
    if not MEMINFO.exists():
        return None
    entries = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="ascii").splitlines())
    return sum(1024 * int(entries[name].split()[0]) for name in ("MemAvailable", "SwapFree") if name in entries)


def resident_memory() -> int:
    """Bytes that this process holds now; the most so far where the system does not tell."""
    if not STATM.exists():
        return int(peak_resident_mib() * 2**20)
    return int(STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def available_disk(path: Path) -> int:
    """Bytes free where ``path`` is, or will be."""
    return shutil.disk_usage(nearest_folder(path)).free


def nearest_folder(path: Path) -> Path:
    """``path`` itself or the folder nearest above it that is there."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
