"""What stands between two integer products: normalization, activation and quantization, in one pass where possible.

Two implementations of one interface: C++ compiled on this machine (:class:`NativeFusedOps`), and torch's operators
(:class:`TorchFusedOps`), several times slower but everywhere at hand. Images are (N, C, H, W) in channels-last memory,
tokens (..., C).
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitbrush.numerics.affine import QParams, quantize

BYTE = 8
ALL = slice(None)
"""Channels."""


@dataclass(frozen=True)
class Bytes:
    """Quantized activations: ``x_q = high`` where ``low`` is None, else ``256 high + low``; uint8 of one shape."""

    high: Tensor
    low: Tensor | None
    qparams: QParams

    @classmethod
    def of(cls, x_q: Tensor, qparams: QParams) -> "Bytes":
        """Of int32 integers."""
        if qparams.bits <= BYTE:
            return cls(x_q.to(torch.uint8), None, qparams)
        return cls((x_q >> BYTE).to(torch.uint8), (x_q & 255).to(torch.uint8), qparams)


def memory_format(x: Tensor) -> torch.memory_format:
    """How images (N, C, H, W), and how tokens lie in memory."""
    return torch.channels_last if x.dim() == 4 else torch.contiguous_format


class FusedOps(Protocol):
    """The operations around the integer products. All results are ``quantize(f(x), qparams)``.

    ``padding``: so many pixels of zero points on every side of an image, which a convolution would else have to add.
    """

    @property
    def name(self) -> str: ...

    def quantize(self, x: Tensor, qparams: QParams, *, padding: int = 0, upsample: int = 1) -> Bytes:
        """f(x) = x; images may be magnified by repeating each pixel ``upsample`` times in both directions."""
        ...

    def group_norm(
        self,
        x: Tensor,
        norm: nn.GroupNorm,
        qparams: QParams,
        *,
        padding: int = 0,
        silu: bool = False,
        add: Tensor | None = None,
        channels: slice = ALL,
    ) -> Bytes:
        """f(x) = norm(x + add), SiLU of it where asked for; ``add`` (N, C) float32. Tokens are (N, HW, C).

        Of all channels normalized, the result has these ``channels``.
        """
        ...

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm, qparams: QParams) -> Bytes:
        """f(x) = norm(x) over the channels."""
        ...

    def geglu(self, x: Tensor, qparams: QParams) -> Bytes:
        """f(value, gate) = value * gelu(gate) of the two halves of the channels."""
        ...


class TorchFusedOps:
    """By torch's own operators, one pass over memory each."""

    name = "torch operators"

    def quantize(self, x: Tensor, qparams: QParams, *, padding: int = 0, upsample: int = 1) -> Bytes:
        if upsample > 1:
            x = F.interpolate(x, scale_factor=float(upsample), mode="nearest")
        x_q = quantize(x.float(), qparams)
        if padding:
            x_q = F.pad(x_q, (padding,) * 4, value=qparams.zero_point)
        return Bytes.of(x_q.contiguous(memory_format=memory_format(x)), qparams)

    def group_norm(
        self,
        x: Tensor,
        norm: nn.GroupNorm,
        qparams: QParams,
        *,
        padding: int = 0,
        silu: bool = False,
        add: Tensor | None = None,
        channels: slice = ALL,
    ) -> Bytes:
        tokens = x.dim() == 3
        y = x.float().transpose(1, 2) if tokens else x.float()
        if add is not None:
            y = y + add.view(*add.shape, *(1,) * (y.dim() - 2))
        y = F.group_norm(y, norm.num_groups, norm.weight.float(), norm.bias.float(), norm.eps)
        y = (F.silu(y) if silu else y)[:, channels]
        return self.quantize(y.transpose(1, 2) if tokens else y, qparams, padding=padding)

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm, qparams: QParams) -> Bytes:
        return self.quantize(
            F.layer_norm(x.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps), qparams
        )

    def geglu(self, x: Tensor, qparams: QParams) -> Bytes:
        value, gate = x.float().chunk(2, dim=-1)
        return self.quantize(value * F.gelu(gate), qparams)
