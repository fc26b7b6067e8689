"""NVIDIA GPU runtime: 8-bit products and fused ops as Triton kernels."""
