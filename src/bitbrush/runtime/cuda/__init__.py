"""Execution on NVIDIA cards: 8-bit products and what lies between them, as Triton kernels."""
