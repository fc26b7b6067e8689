"""Affine quantization per row, with ranges computed at run time from the extremes of each row."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenQParams:
    """Quantization parameters of each row, the counterpart of :class:`~bitbrush.numerics.affine.QParams`.

    ``scale`` and ``zero_point`` (whole numbers) are float32. They have the quantized tensor's shape, with size 1 in all
    dimensions within a row.
    """

    scale: Tensor
    zero_point: Tensor
    bits: int

    @property
    def qmax(self) -> int:
        """The largest quantized integer, ``2^bits - 1``."""
        return (1 << self.bits) - 1

    @classmethod
    def of(cls, x: Tensor, bits: int, *, within: int) -> "TokenQParams":
        """Computes ``QParams.from_range(min, max, bits)`` of every row.

        Args:
            x: Float32 tensor.
            bits: Bits of the quantized values.
            within: Number of last dimensions that form a row.
        """
        rows = x.flatten(-within)
        low, high = (end.double() for end in torch.aminmax(rows, dim=-1))
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = ((high - low) / ((1 << bits) - 1)).float()
        nothing = scale < torch.finfo(torch.float32).tiny
        scale = scale.masked_fill(nothing, 1.0)
        zero_point = (-low / scale).round().clamp(0, (1 << bits) - 1).float().masked_fill(nothing, 0.0)
        shape = *rows.shape[:-1], *(1,) * within
        return cls(scale.view(shape), zero_point.view(shape), bits)


def quantize_rows(x: Tensor, all_qparams: TokenQParams) -> Tensor:
    """Quantizes every row: ``clamp(round(x / scale) + zero_point, 0, 2^bits - 1)``, whole numbers in float32."""
    return (x * all_qparams.scale.reciprocal()).round_().add_(all_qparams.zero_point).clamp_(0, all_qparams.qmax)


def fake_quantize_rows(x: Tensor, bits: int, *, within: int) -> Tensor:
    """Quantizes and dequantizes every row with its own range; NaN stays NaN.

    Args:
        x: Float32 tensor.
        bits: Bits of the quantized values.
        within: Number of last dimensions that form a row.
    """
    all_qparams = TokenQParams.of(x, bits, within=within)
    return quantize_rows(x, all_qparams).sub_(all_qparams.zero_point).mul_(all_qparams.scale)
