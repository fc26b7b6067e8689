"""Affine quantization per tensor: one scale and zero point for all elements."""

import functools
import math
from ctypes import c_float
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from bitbrush.numerics.limits import MAX_BITS, MIN_BITS


@dataclass(frozen=True, slots=True)
class QParams:
    """Quantization parameters of one tensor: it takes the values ``(x_q - zero_point) * scale``.

    ``x_q`` lies in ``[0, 2^bits - 1]``. ``scale`` is a positive float32 value. ``zero_point`` also lies in ``[0, 2^bits
    - 1]``, so zero, and with it the padding of a convolution, is exact.
    """

    scale: float
    zero_point: int
    bits: int

    def __post_init__(self) -> None:
        _check_bits(self.bits)
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale is {self.scale}; it must be finite and positive")
        if not 0 <= self.zero_point <= self.qmax:
            raise ValueError(f"zero_point is {self.zero_point}; with {self.bits} bits it lies in [0, {self.qmax}]")

    @property
    def qmax(self) -> int:
        """The largest quantized integer, ``2^bits - 1``."""
        return (1 << self.bits) - 1

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest value that these parameters represent."""
        return -self.zero_point * self.scale, (self.qmax - self.zero_point) * self.scale

    @classmethod
    def from_range(cls, low: float, high: float, bits: int) -> Self:
        """Computes the parameters that cover ``[min(low, 0), max(high, 0)]``; the zero point is rounded to an integer.

        An empty range contains only zeros, which any scale represents; it gets scale 1.

        Raises:
            ValueError: ``bits`` is not supported, or the range is not finite.
        """
        _check_bits(bits)
        low, high = min(low, 0.0), max(high, 0.0)
        qmax = (1 << bits) - 1
        scale = float(torch.tensor((high - low) / qmax, dtype=torch.float32, device="cpu"))
        if scale < torch.finfo(torch.float32).tiny:
            return cls(scale=1.0, zero_point=0, bits=bits)
        return cls(scale=scale, zero_point=min(qmax, max(0, round(-low / scale))), bits=bits)


def quantize(x: Tensor, qparams: QParams) -> Tensor:
    """Quantizes to int32: ``clamp(round(x / scale) + zero_point, 0, 2^bits - 1)``, rounding half to even.

    The division is a multiplication by the float32 reciprocal, as in integer runtimes.
    """
    return (x * reciprocal(qparams)).round_().add_(qparams.zero_point).clamp_(0, qparams.qmax).to(torch.int32)


def dequantize(x_q: Tensor, qparams: QParams) -> Tensor:
    """Dequantizes to float32: ``(x_q - zero_point) * scale``."""
    return (x_q - qparams.zero_point).to(torch.float32) * qparams.scale


def fake_quantize(x: Tensor, qparams: QParams) -> Tensor:
    """Quantizes and dequantizes in one pass; bit for bit ``dequantize(quantize(x))``, except that NaN stays NaN.

    The clamp is shifted by the zero point, which saves two passes over memory. (torch's fused operator has no
    vectorized CPU kernel: it is ten times slower, and it maps NaN to a number.)
    """
    zero_point = qparams.zero_point
    return (x * reciprocal(qparams)).round_().clamp_(-zero_point, qparams.qmax - zero_point).mul_(qparams.scale)


def quantize_straight_through(x: Tensor, scale: Tensor, qparams: QParams) -> Tensor:
    """Fake-quantizes with a learnable scale; gradients pass through the rounding (straight-through estimator).

    The gradient of ``x`` is 1 within the range and 0 outside. The gradient of the scale is that of LSQ (arXiv
    1902.08153, equation 3): ``round(x / s) - x / s`` within the range, and the nearer end of the range outside.

    Args:
        x: Values of any shape.
        scale: Learnable scale, shape ``()``; it replaces ``qparams.scale``.
        qparams: Zero point and bits.

    Returns:
        The fake-quantized values, as :func:`fake_quantize`.
    """
    u = (x / scale).clamp(-qparams.zero_point, qparams.qmax - qparams.zero_point)
    return (u + (u.round() - u).detach()) * scale


def _check_bits(bits: int) -> None:
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"bits is {bits}; supported are {MIN_BITS} to {MAX_BITS}")


@functools.lru_cache(maxsize=1 << 16)
def reciprocal(qparams: QParams) -> float:
    """Computes ``1 / scale`` rounded to float32, the factor that inputs are multiplied by."""
    scale = c_float(qparams.scale).value
    return c_float(1 / scale).value if scale else math.inf
