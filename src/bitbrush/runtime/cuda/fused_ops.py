"""Fused operations by Triton kernels; :mod:`bitbrush.runtime.fused_ops` defines the results.

Images are (N, C, H, W) in channels-last memory (others are copied to it first), tokens (..., C).
"""

from dataclasses import dataclass
from types import ModuleType
from typing import Any, Self

from torch import Tensor, nn

from bitbrush.runtime.cuda.steps import StepQParams
from bitbrush.runtime.fused_ops import ALL

Border = tuple[int, int]
NO_BORDER: Border = (0, 0)


@dataclass(frozen=True)
class DeviceBytes:
    """Quantized activations, each byte less half its range, int8; ``low`` is present if some steps have two bytes.

    Images are (N, H, W, C) with their border, tokens (..., C).
    """

    high: Tensor
    low: Tensor | None
    qparams: StepQParams


class CudaFusedOps:
    """Fused operations on a GPU; ``ops`` is the module of that name, passed in since it imports Triton."""

    name = "Triton kernels"

    def __init__(self, ops: ModuleType) -> None:
        self.ops: Any = ops

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        return self  # a module cannot be copied, and there is no other state

    def quantize(
        self, x: Tensor, qparams: StepQParams, *, padding: Border = NO_BORDER, upsample: int = 1
    ) -> DeviceBytes:
        """Quantizes an image or tokens, see :meth:`bitbrush.runtime.fused_ops.FusedOps.quantize`."""
        return self._image(x, qparams, padding, upsample=upsample)

    def group_norm(
        self,
        x: Tensor,
        norm: nn.GroupNorm,
        qparams: StepQParams,
        *,
        padding: Border = NO_BORDER,
        silu: bool = False,
        add: Tensor | None = None,
        channels: slice = ALL,
    ) -> DeviceBytes:
        """Normalizes groups of channels and quantizes, see :meth:`bitbrush.runtime.fused_ops.FusedOps.group_norm`."""
        affine = self.ops.group_norm_affine(
            _nhwc(x), norm.weight.float(), norm.bias.float(), add, norm.num_groups, norm.eps
        )
        return _of_channels(self._image(x, qparams, padding, affine=affine, silu=silu), channels)

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm, qparams: StepQParams) -> DeviceBytes:
        """Normalizes over the channels and quantizes, see :meth:`bitbrush.runtime.fused_ops.FusedOps.layer_norm`."""
        return _bytes(
            self.ops.layer_norm_bytes(
                x.contiguous(),
                norm.weight.float(),
                norm.bias.float(),
                norm.eps,
                qparams.scales,
                qparams.integers,
                qparams.wide,
            ),
            qparams,
        )

    def geglu(self, x: Tensor, qparams: StepQParams) -> DeviceBytes:
        """Gates one half of the channels by the other, see :meth:`bitbrush.runtime.fused_ops.FusedOps.geglu`."""
        return _bytes(self.ops.geglu_bytes(x.contiguous(), qparams.scales, qparams.integers, qparams.wide), qparams)

    def _image(
        self,
        x: Tensor,
        qparams: StepQParams,
        border: Border,
        *,
        affine: tuple[Tensor, Tensor] | None = None,
        silu: bool = False,
        upsample: int = 1,
    ) -> DeviceBytes:
        factor, shift = affine or (None, None)
        high, low = self.ops.quantize_image(
            _nhwc(x), factor, shift, qparams.scales, qparams.integers, border, upsample, silu, qparams.wide
        )
        if x.dim() != 4:
            high, low = high.view(x.shape), low.view(x.shape) if qparams.wide else low
        return _bytes((high, low), qparams)


def _bytes(parts: tuple[Tensor, Tensor], qparams: StepQParams) -> DeviceBytes:
    high, low = parts
    return DeviceBytes(high, low if qparams.wide else None, qparams)


def _of_channels(x: DeviceBytes, channels: slice) -> DeviceBytes:
    if channels == ALL:
        return x
    high, low = (None if part is None else part[..., channels].contiguous() for part in (x.high, x.low))
    assert high is not None
    return DeviceBytes(high, low, x.qparams)


def _nhwc(x: Tensor) -> Tensor:
    """Converts (N, C, H, W), or tokens (N, L, C) or (N, C) as images of one line, to contiguous (N, H, W, C)."""
    if x.dim() == 4:
        return x.permute(0, 2, 3, 1).contiguous()
    return x.reshape(x.shape[0], 1, -1, x.shape[-1]).contiguous()


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Computes ``softmax(q k^T / sqrt(d)) v`` per head, (N, L, heads d), by torch's fused kernel."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
