"""Facts about this machine that decide how an artifact runs: instructions of the CPU, and the GPU."""

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from bitbrush.runtime.cuda.package import has_gpu

CPU_INFO = Path("/proc/cpuinfo")
INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "amx_int8": "AMX-INT8",
    "amx_bf16": "AMX-BF16",
    "asimddp": "Arm dot product",
    "i8mm": "Arm I8MM",
    "bf16": "Arm BF16",
}
"""Names of the instruction sets that matter to products of bytes and of half precision, by Linux's flags."""
LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
"""Environment variables that keep instructions from being used."""

KNOWN_GPUS = {
    (7, 5): "too old: Triton multiplies no bytes on it",
    (8, 0): "kernels compile for it; never run on one",
    (8, 6): "kernels compile for it; never run on one",
    (8, 9): "kernels compile for it; never run on one",
    (9, 0): "run on an H200, measured in docs/performance.md",
    (10, 0): "never run on one",
    (10, 3): "left alone unless asked for: it multiplies bytes at a fifteenth of fp16's rate",
    (12, 0): "kernels compile for it; never run on one",
}
"""Experience with the CUDA kernels by compute capability."""


def cpu_facts() -> dict[str, str]:
    """Returns the processor's name, its cores and threads, and its instruction sets."""
    info = _cpu_info()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limits = [f"{name}={value}" for name in LIMITS if (value := os.environ.get(name))]
    instructions = _instructions(info) or f"torch uses {torch.backends.cpu.get_cpu_capability()}"
    return {
        "CPU": info.get("model name") or platform.processor() or platform.machine(),
        "cores": f"{cores}; torch uses {torch.get_num_threads()} threads",
        "instructions": "; limited by ".join([instructions, *(", ".join(limits),) * bool(limits)]),
    }


def _cpu_info() -> Mapping[str, str]:
    """Reads the first processor's entries; empty where the system has no such file."""
    if not CPU_INFO.exists():
        return {}
    entries = re.findall(r"^([^\t:]+)\t*: ?(.*)$", CPU_INFO.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(reversed(entries))


def _instructions(info: Mapping[str, str]) -> str:
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return ", ".join(name for flag, name in INSTRUCTIONS.items() if flag in flags)


def gpu_facts() -> dict[str, str]:
    """Returns the GPU's name, memory and compute capability, with what is known of the kernels on it."""
    if not has_gpu():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
        return {"GPU": f"none that torch {torch.__version__} ({built}) sees"}
    capability = torch.cuda.get_device_capability()
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    known = KNOWN_GPUS.get(capability, "no experience with this compute capability")
    return {
        "GPU": f"{torch.cuda.get_device_name()}, {memory:.0f} GiB",
        "compute capability": f"{capability[0]}.{capability[1]}: {known}",
    }
