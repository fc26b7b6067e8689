"""Blocks computed in one go: quantized activations go straight from one layer's glue into the next one's product.

Each replaces the ``forward`` of one of the denoiser's modules; calls with arguments that a description does not tell of
are handed to the module's own.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitbrush.network import fusions
from bitbrush.runtime.attention import AttentionKernel
from bitbrush.runtime.glue import Bytes, Glue
from bitbrush.runtime.memo import Memo
from bitbrush.runtime.onednn.layers import IntegerConv2d, IntegerLinear
from bitbrush.timeline.clock import Clock

Part: TypeAlias = Callable[[str], Any]
"""The denoiser's module of a name, as it is after its layers were replaced."""


class NormedLayer:
    """A layer that normalizes its own input; the norm before it must pass its input through."""

    def __init__(self, described: fusions.NormedLayer, part: Part, glue: Glue) -> None:
        self._norm: nn.GroupNorm = part(described.norm)
        self._layer: IntegerConv2d | IntegerLinear = part(described.layer)
        self._silu, self._glue = described.activation is not None, glue

    def __call__(self, x: Tensor) -> Tensor:
        layer = self._layer
        border = layer.border if isinstance(layer, IntegerConv2d) else 0
        x_q = self._glue.group_norm(x, self._norm, layer.grid, padding=border, silu=self._silu)
        return layer.multiply(x_q, x.dtype)


class UpsampledConv:
    """Each pixel is quantized once and written four times."""

    def __init__(self, described: fusions.UpsampledConv, part: Part) -> None:
        self._conv: IntegerConv2d = part(described.conv)

    def __call__(self, x: Tensor, output_size: Any = None, *_: Any, **__: Any) -> Tensor:
        height, width = x.shape[-2:]
        if output_size is None or tuple(output_size) == (2 * height, 2 * width):
            return self._conv.multiply(self._conv.quantize(x, upsample=2), x.dtype)
        return self._conv(F.interpolate(x, size=output_size, mode="nearest"))  # type: ignore[no-any-return]


class ImageTransformer:
    """Pixels become tokens and pixels again without being moved: both lie in channels-last memory."""

    def __init__(
        self, described: fusions.ImageTransformer, part: Part, glue: Glue, original: Callable[..., Any]
    ) -> None:
        self._norm: nn.GroupNorm = part(described.norm)
        self._proj_in: IntegerConv2d | IntegerLinear = part(described.proj_in)
        self._proj_out: IntegerConv2d | IntegerLinear = part(described.proj_out)
        self._blocks = [part(name) for name in described.blocks]
        self._glue, self._original = glue, original

    def __call__(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *args: Any,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        if return_dict or args:
            return self._original(hidden_states, encoder_hidden_states, *args, return_dict=return_dict, **kwargs)
        x = hidden_states.contiguous(memory_format=torch.channels_last)
        dtype, image = x.dtype, isinstance(self._proj_in, IntegerConv2d)
        x_q = self._glue.group_norm(x if image else tokens(x), self._norm, self._proj_in.grid)
        h = self._proj_in.multiply(x_q, dtype)
        h = tokens(h) if image else h
        for block in self._blocks:
            h = block(h, encoder_hidden_states=encoder_hidden_states, **kwargs)
        h = pixels(h, x) if image else h
        y = self._proj_out.multiply(self._proj_out.quantize(h), dtype, residual=x if image else tokens(x))
        return (y if image else pixels(y, x),)


def tokens(x: Tensor) -> Tensor:
    """(N, C, H, W) channels-last as (N, HW, C), the same memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def pixels(x: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`tokens`, H and W those of ``like``."""
    image: Tensor = x.unflatten(1, tuple(like.shape[-2:])).permute(0, 3, 1, 2)
    return image


class ResidualBlock:
    def __init__(self, described: fusions.ResidualBlock, part: Part, glue: Glue, clock: Clock) -> None:
        self._norm1: nn.GroupNorm = part(described.norm1)
        self._conv1: IntegerConv2d = part(described.conv1)
        self._norm2: nn.GroupNorm = part(described.norm2)
        self._conv2: IntegerConv2d = part(described.conv2)
        self._time: IntegerLinear | None = part(described.time_projection) if described.time_projection else None
        self._shortcut: IntegerConv2d | None = part(described.shortcut) if described.shortcut else None
        self._glue, self._clock = glue, clock
        self._times = Memo(entries=128)

    def __call__(self, x: Tensor, temb: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        conv1, conv2 = self._conv1, self._conv2
        x_q = self._glue.group_norm(x, self._norm1, conv1.grid, padding=conv1.border, silu=True)
        h = conv1.multiply(x_q, x.dtype)
        time = self._time_added(temb) if self._time is not None and temb is not None else None
        h_q = self._glue.group_norm(h, self._norm2, conv2.grid, padding=conv2.border, silu=True, add=time)
        return conv2.multiply(h_q, x.dtype, residual=x if self._shortcut is None else self._shortcut(x))

    def _time_added(self, temb: Tensor) -> Tensor:
        """(N, C): the same for every generation's call of this timestep, unless the text takes part in it."""
        assert self._time is not None
        layer = self._time
        return self._times.get(self._clock.timestep, temb, lambda: _tensor(layer(F.silu(temb))).float())


class TransformerBlock:
    def __init__(
        self,
        described: fusions.TransformerBlock,
        part: Part,
        glue: Glue,
        attention: AttentionKernel,
        original: Callable[..., Tensor],
    ) -> None:
        self._glue, self._original = glue, original
        self._norm1: nn.LayerNorm = part(described.norm1)
        self._self = SelfAttention(described.self_attention, part, glue, attention)
        self._norm2: nn.LayerNorm | None = part(described.norm2) if described.norm2 else None
        crossed = described.cross_attention
        self._cross = CrossAttention(crossed, part, glue, attention) if crossed else None
        self._norm3: nn.LayerNorm = part(described.norm3)
        self._expand: IntegerLinear = part(described.expand)
        self._shrink: IntegerLinear = part(described.shrink)

    def __call__(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        *args: Any,
        cross_attention_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        crossed = self._cross is not None
        if (
            attention_mask is not None
            or encoder_attention_mask is not None
            or cross_attention_kwargs
            or (encoder_hidden_states is None) is crossed
        ):
            kwargs["cross_attention_kwargs"] = cross_attention_kwargs
            return self._original(x, attention_mask, encoder_hidden_states, encoder_attention_mask, *args, **kwargs)
        x = self._self(x, self._norm1)
        if self._cross is not None and self._norm2 is not None and encoder_hidden_states is not None:
            x = self._cross(x, self._norm2, encoder_hidden_states)
        expand, shrink = self._expand, self._shrink
        inner = expand.multiply(self._glue.layer_norm(x, self._norm3, expand.grid), x.dtype)
        return shrink.multiply(self._glue.geglu(inner, shrink.grid), x.dtype, residual=x)


def _tensor(x: Any) -> Tensor:
    assert isinstance(x, Tensor)
    return x


class _Attention:
    def __init__(self, described: fusions.Attention, part: Part, glue: Glue, attention: AttentionKernel) -> None:
        self._query: IntegerLinear = part(described.query)
        self._key: IntegerLinear = part(described.key)
        self._value: IntegerLinear = part(described.value)
        self._output: IntegerLinear = part(described.output)
        self._heads, self._glue, self._attention = described.heads, glue, attention

    def _attend(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attended = self._attention(query, key, value, self._heads)
        return self._output.multiply(self._output.quantize(attended), x.dtype, residual=x)


class SelfAttention(_Attention):
    """``x + attention(norm(x))``; layers whose grids are equal share the quantized input."""

    def __call__(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        known: dict[Any, Bytes] = {}
        projected = []
        for layer in (self._query, self._key, self._value):
            grid = layer.grid
            if grid not in known:
                known[grid] = self._glue.layer_norm(x, norm, grid)
            projected.append(layer.multiply(known[grid], x.dtype))
        return self._attend(x, *projected)


class CrossAttention(_Attention):
    """``x + attention(norm(x), text)``; keys and values of a text are computed once, not once per step."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._keys, self._values = Memo(entries=4), Memo(entries=4)

    def __call__(self, x: Tensor, norm: nn.LayerNorm, text: Tensor) -> Tensor:
        query = self._query.multiply(self._glue.layer_norm(x, norm, self._query.grid), x.dtype)
        key = self._keys.get(self._key.grid, text, lambda: self._key(text))
        value = self._values.get(self._value.grid, text, lambda: self._value(text))
        return self._attend(x, query, key, value)
