"""The results file: rows by model and size, written whole after every group, so that a run can go on where it ended."""

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any, TypeAlias

from bitbrush.session.disk import write_whole
from cpu.subjects import THREADS

PACKAGES = (
    *("bitbrush", "torch", "diffusers", "transformers", "safetensors"),
    *("torchao", "optimum-quanto", "sdnq", "openvino", "nncf"),
)
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8")

Row: TypeAlias = dict[str, Any]
"""``seconds``, ``cpu_seconds`` per round; by anchor, ``beside``, ``beside_cpu`` of the same rounds; or ``error``."""


class Results:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: dict[str, dict[str, Row]] = {}
        if path.exists():
            self.runs = json.loads(path.read_text(encoding="utf-8"))["runs"]

    def has(self, key: str, row: str) -> bool:
        known = self.runs.get(key, {}).get(row)
        return known is not None and "error" not in known

    def put(self, key: str, rows: dict[str, Row]) -> None:
        self.runs.setdefault(key, {}).update(rows)
        content = {"machine": machine(), "versions": versions(), "runs": self.runs}
        write_whole(json.dumps(content, indent=1) + "\n", self.path)


def machine() -> dict[str, Any]:
    """What decides how fast kernels are: the processor, its vector extensions, cores and memory."""
    info = dict(
        (part.strip() for part in line.split(":", 1))
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if ":" in line
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": f"{info['model name']} (family {info['cpu family']}, model {info['model']})",
        "flags": [flag for flag in _FLAGS if flag in info["flags"].split()],
        "cores": os.cpu_count(),
        "threads": THREADS,
        "memory_gib": round(memory / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str | None]:
    """Of every package that takes part; None of one that is not installed."""
    installed = {
        dist.metadata["Name"].lower().replace("_", "-"): dist.version for dist in importlib.metadata.distributions()
    }
    return {name: installed.get(name) for name in PACKAGES}
