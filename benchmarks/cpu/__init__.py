"""Parts of ``benchmarks/unet_cpu.py``: models, subjects, their processes, the table."""
