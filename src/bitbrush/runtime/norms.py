"""Normalization in float32 whatever surrounds it."""

import functools

import torch
from torch import Tensor, nn


class Float32Norm:
    """The ``forward`` of a GroupNorm or LayerNorm: computes in float32 and answers in ``dtype``."""

    def __init__(self, norm: nn.Module, dtype: torch.dtype) -> None:
        functools.update_wrapper(self, type(norm).forward)
        self._norm, self._dtype = norm, dtype

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = type(self._norm).forward(self._norm, x.float())
        return y.to(self._dtype)
