"""Integer weights in the layout of the kernels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitbrush.network.layers import QuantizedLayer
from bitbrush.numerics.weights import QuantizedWeight
from bitbrush.runtime.nibbles import NIBBLE

_WORD = 2**31


@dataclass(frozen=True)
class Weights:
    """Weights of a layer on the device.

    Attributes:
        data: (C_out, taps, C_in / groups) int8, or uint8 nibbles.
        zero_points: (C_out,) int8 for nibbles, else None.
        sums: (C_out,) int32 sums of the signed weights.
        scale: (C_out,) float32.
        bias: (C_out,) float32 or None.
        largest: Largest sum of a filter's magnitudes.
        count: Number of weights.
    """

    data: Tensor
    zero_points: Tensor | None
    sums: Tensor
    scale: Tensor
    bias: Tensor | None
    largest: int
    count: int

    def overflows(self, bits: int) -> bool:
        """Whether sums of activations of ``bits`` bits may exceed 32 bits.

        If not, neither does any sum on the way, in any order: stored activations of two bytes are at most
        ``2^(bits - 1) + 128``, which is less than ``2^bits - 1``.
        """
        return self.largest * ((1 << bits) - 1) >= _WORD


def lay_out(layer: QuantizedLayer, signed: Tensor, device: torch.device, *, nibbles: bool) -> Weights:
    """Lays out a layer's weights for the kernels.

    Args:
        layer: Quantized layer.
        signed: (C_out, C_in, ...) int8: its weights less their zero points.
        device: Target device.
        nibbles: Whether weights of up to 4 bits take half a byte.
    """
    rows = signed.flatten(1)
    packed = nibbles and layer.weight.qparams.bits <= NIBBLE
    data = _nibbles(layer.weight) if packed else _taps_first(signed)
    return Weights(
        data=data.to(device),
        zero_points=layer.weight.qparams.zero_point.to(device, torch.int8) if packed else None,
        sums=rows.sum(1, dtype=torch.int64).to(device, torch.int32),
        scale=layer.weight.qparams.scale.to(device, torch.float32),
        bias=None if layer.bias is None else layer.bias.to(device, torch.float32),
        largest=int(rows.abs().to(torch.uint8).sum(1, dtype=torch.int64).max()),
        count=rows.numel(),
    )


def stack(parts: Sequence[Weights]) -> Weights:
    """Concatenates the filters of layers with equal layout."""
    zero_points = [one.zero_points for one in parts if one.zero_points is not None]
    biases = [torch.zeros_like(one.scale) if one.bias is None else one.bias for one in parts]
    return Weights(
        data=torch.cat([one.data for one in parts]),
        zero_points=torch.cat(zero_points) if zero_points else None,
        sums=torch.cat([one.sums for one in parts]),
        scale=torch.cat([one.scale for one in parts]),
        bias=None if all(one.bias is None for one in parts) else torch.cat(biases),
        largest=max(one.largest for one in parts),
        count=sum(one.count for one in parts),
    )


def _taps_first(weight: Tensor) -> Tensor:
    """Reorders (C_out, C_in, ...) to (C_out, taps, C_in)."""
    return weight.reshape(len(weight), weight.shape[1], -1).transpose(1, 2).contiguous()


def _nibbles(weight: QuantizedWeight) -> Tensor:
    """Packs two weights in a byte: low nibbles hold the first half of a tap's channels, high nibbles the second."""
    w_q = _taps_first(weight.w_q)
    half = (w_q.shape[2] + 1) // 2
    low, high = w_q[..., :half], nn.functional.pad(w_q[..., half:], (0, w_q.shape[2] % 2))
    return low | (high << NIBBLE)
