"""Entry of a subject's process, see ``worker.py``."""

import sys

# Triton is for GPUs, and torch for CPUs comes without it. Where it is installed, torch imports it: 100 MiB a process.
sys.modules["triton"] = None  # type: ignore[assignment]

from cpu.worker import main  # noqa: E402 - torch must find Triton missing

main()
