"""Parts of ``benchmarks/unet_gpu.py``: denoisers, ways of running them, the process that measures, the table."""
