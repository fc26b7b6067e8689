"""Fused operations between two integer products: normalization, activation and quantization.

One interface has two implementations. :class:`NativeFusedOps` is C++ compiled on this machine, one pass over memory
where possible. :class:`TorchFusedOps` uses torch's operators, several times slower but always available. Images are (N,
C, H, W) in channels-last memory, tokens (..., C).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitbrush.numerics.affine import QParams, quantize

BYTE = 8
ALL = slice(None)
"""Slice of all channels."""


@dataclass(frozen=True)
class Bytes:
    """Quantized activations: ``x_q = high`` where ``low`` is None, else ``256 high + low``; uint8 of one shape."""

    high: Tensor
    low: Tensor | None
    qparams: QParams

    @classmethod
    def of(cls, x_q: Tensor, qparams: QParams) -> "Bytes":
        """Splits int32 integers into bytes."""
        if qparams.bits <= BYTE:
            return cls(x_q.to(torch.uint8), None, qparams)
        return cls((x_q >> BYTE).to(torch.uint8), (x_q & 255).to(torch.uint8), qparams)

    def view(self, *shape: int) -> "Bytes":
        """Views the integers in another shape."""
        return Bytes(self.high.view(shape), None if self.low is None else self.low.view(shape), self.qparams)

    def split(self, rows: int) -> "list[Bytes]":
        """Splits the integers by ``rows`` of the first dimension."""
        highs = self.high.split(rows)
        lows = (None,) * len(highs) if self.low is None else self.low.split(rows)
        return [Bytes(high, low, self.qparams) for high, low in zip(highs, lows, strict=True)]

    @staticmethod
    def join(parts: "Sequence[Bytes]") -> "Bytes":
        """Inverts :meth:`split`."""
        if len(parts) == 1:
            return parts[0]
        lows = [part.low for part in parts if part.low is not None]
        return Bytes(torch.cat([part.high for part in parts]), torch.cat(lows) if lows else None, parts[0].qparams)


def memory_format(x: Tensor) -> torch.memory_format:
    """Returns the memory format of images (N, C, H, W) or of tokens."""
    return torch.channels_last if x.dim() == 4 else torch.contiguous_format


class FusedOps(Protocol):
    """Operations around the integer products; each result is ``quantize(f(x), qparams)``.

    ``padding`` adds that many pixels of zero points to each side of an image, so that the convolution need not pad.
    """

    @property
    def name(self) -> str:
        """Short name of the implementation, for messages."""
        ...

    def quantize(self, x: Tensor, qparams: QParams, *, padding: int = 0, upsample: int = 1) -> Bytes:
        """Computes f(x) = x; images may be magnified by repeating each pixel ``upsample`` times in both directions."""
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
        """Computes f(x) = norm(x + add), followed by SiLU if ``silu``.

        Args:
            x: Image (N, C, H, W) or tokens (N, HW, C).
            norm: Normalization over all channels of ``x``.
            qparams: Quantization parameters of the result.
            padding: Pixels of zero points on each side of the result.
            silu: Whether to apply SiLU.
            add: (N, C) float32 or None.
            channels: Channels of the normalized tensor that the result has.
        """
        ...

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm, qparams: QParams) -> Bytes:
        """Computes f(x) = norm(x) over the channels."""
        ...

    def geglu(self, x: Tensor, qparams: QParams) -> Bytes:
        """Computes f(value, gate) = value * gelu(gate), where value and gate are the halves of the channels."""
        ...


class TorchFusedOps:
    """Fused operations by torch's operators, one pass over memory each."""

    name = "torch operators"

    def quantize(self, x: Tensor, qparams: QParams, *, padding: int = 0, upsample: int = 1) -> Bytes:
        """Quantizes an image or tokens, see :meth:`FusedOps.quantize`."""
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
        """Normalizes groups of channels and quantizes, see :meth:`FusedOps.group_norm`."""
        tokens = x.dim() == 3
        y = x.float().transpose(1, 2) if tokens else x.float()
        if add is not None:
            y = y + add.view(*add.shape, *(1,) * (y.dim() - 2))
        y = F.group_norm(y, norm.num_groups, norm.weight.float(), norm.bias.float(), norm.eps)
        y = (F.silu(y) if silu else y)[:, channels]
        return self.quantize(y.transpose(1, 2) if tokens else y, qparams, padding=padding)

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm, qparams: QParams) -> Bytes:
        """Normalizes over the channels and quantizes, see :meth:`FusedOps.layer_norm`."""
        return self.quantize(
            F.layer_norm(x.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps), qparams
        )

    def geglu(self, x: Tensor, qparams: QParams) -> Bytes:
        """Gates one half of the channels by the other and quantizes, see :meth:`FusedOps.geglu`."""
        value, gate = x.float().chunk(2, dim=-1)
        return self.quantize(value * F.gelu(gate), qparams)
