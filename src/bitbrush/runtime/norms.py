"""Normalization in float32 for activations of any dtype."""

import functools

import torch
from torch import Tensor, nn


def normalize_in_float32(norm: nn.Module, answer: torch.dtype) -> None:
    """Makes a GroupNorm or LayerNorm compute in float32 and return dtype ``answer``."""
    norm.forward = _Float32Forward(norm, answer)


class _Float32Forward:
    def __init__(self, norm: nn.Module, answer: torch.dtype) -> None:
        functools.update_wrapper(self, type(norm).forward)
        self._norm, self._answer = norm, answer

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = type(self._norm).forward(self._norm, x.float())
        return y.to(self._answer)
