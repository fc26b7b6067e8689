"""Checks of tensors that native kernels read by pointer."""

import torch
from torch import Tensor


def require_layout(tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Checks a tensor that a kernel reads by pointer: the kernel trusts its length.

    Raises:
        ValueError: The tensor has another dtype, shape or layout.
    """
    if tensor.dtype != dtype or tuple(tensor.shape) != shape or not tensor.is_contiguous():
        raise ValueError(f"a kernel got {tuple(tensor.shape)} of {tensor.dtype}; it reads {shape} of {dtype}")
