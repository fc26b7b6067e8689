"""Parts of ``benchmarks/unet_cpu.py``: models, subjects, their processes, the table."""

import sys

# Triton is for GPUs, and torch for CPUs comes without it. Where it is installed, torch imports it: 100 MiB a process.
sys.modules["triton"] = None  # type: ignore[assignment]
