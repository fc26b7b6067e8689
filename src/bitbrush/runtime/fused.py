"""Blocks computed in one go: quantized activations go straight from one layer's glue into the next one's product.

Each replaces the ``forward`` of one of the denoiser's modules; calls with arguments that a description does not tell of
are handed to the module's own.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitbrush.network import fusions
from bitbrush.network.skip_inputs import SplitConv2d
from bitbrush.runtime.attention import AttentionKernel
from bitbrush.runtime.glue import ALL

Part: TypeAlias = Callable[[str], Any]
"""The denoiser's module of a name, as it is after its layers were replaced."""


class IntegerModule(Protocol):
    """What a runtime puts where a quantized layer stood.

    ``grid``: of its input, now; equal ones share a quantized input. ``border``: the pixels around it that it wants;
    ``is_image``: takes (N, C, H, W), not tokens. What quantized input is, only the runtime's own glue and layers know.
    """

    is_image: bool

    @property
    def border(self) -> Any: ...

    @property
    def grid(self) -> Hashable: ...

    def __call__(self, x: Tensor) -> Tensor: ...

    def quantize(self, x: Tensor, *, upsample: int = 1) -> Any: ...

    def multiply(self, x: Any, dtype: torch.dtype, residual: Tensor | None = None) -> Tensor: ...


class Memory(Protocol):
    """Gives ``compute()``, or the result that is known of an equal input ``x`` under ``key``."""

    def get(self, key: Hashable, x: Tensor, compute: Callable[[], Tensor]) -> Tensor: ...


@dataclass(frozen=True)
class Between:
    """What blocks compute with between their products.

    ``glue``: with the methods of :class:`~bitbrush.runtime.glue.Glue`, for the runtime's own grids. ``memory(n)``: one
    that knows n results. ``step()``: what results of a timestep are known under.
    """

    glue: Any
    attention: AttentionKernel
    memory: Callable[[int], Memory]
    step: Callable[[], Hashable]


def fuse(denoiser: nn.Module, described: Iterable[fusions.Fusion], kind: type[nn.Module], between: Between) -> None:
    """Computes in one go what the family describes and whose layers all are of the ``kind`` that is in integers."""
    for fusion in described:
        modules = [denoiser.get_submodule(name) for name in _layers(fusion)]
        if all(isinstance(reader.layer, kind) for module in modules for reader in _readers(module)):
            _install(denoiser, fusion, between)


def _install(denoiser: nn.Module, fusion: fusions.Fusion, between: Between) -> None:
    part: Part = denoiser.get_submodule
    made: Callable[..., Any]
    match fusion:
        case fusions.NormedLayer():
            part(fusion.layer).forward = NormedLayer(fusion, part, between)
            for passed in filter(None, (fusion.norm, fusion.activation)):
                setattr(denoiser, passed, nn.Identity())
            return
        case fusions.UpsampledConv():
            made = UpsampledConv(fusion, part)
        case fusions.ResidualBlock():
            made = ResidualBlock(fusion, part, between)
        case fusions.TransformerBlock():
            made = TransformerBlock(fusion, part, between, part(fusion.name).forward)
        case fusions.ImageTransformer():
            made = ImageTransformer(fusion, part, between, part(fusion.name).forward)
    part(fusion.name).forward = made


def _layers(fusion: fusions.Fusion) -> tuple[str, ...]:
    """The layers that must be in integers for a fusion."""
    match fusion:
        case fusions.NormedLayer():
            return (fusion.layer,)
        case fusions.UpsampledConv():
            return (fusion.conv,)
        case fusions.ResidualBlock():
            found = fusion.conv1, fusion.conv2, fusion.time_projection, fusion.shortcut
            return tuple(name for name in found if name is not None)
        case fusions.TransformerBlock():
            attentions = filter(None, (fusion.self_attention, fusion.cross_attention))
            inner = (name for one in attentions for name in (one.query, one.key, one.value, one.output))
            return *inner, fusion.expand, fusion.shrink
        case fusions.ImageTransformer():
            return fusion.proj_in, fusion.proj_out


@dataclass(frozen=True)
class Reader:
    """A layer, and which channels of its input it reads."""

    layer: Any
    channels: slice


def _readers(module: Any) -> tuple[Reader, ...]:
    """What stands for a layer of the denoiser: itself, or the halves of a convolution that reads a skip."""
    if isinstance(module, SplitConv2d):
        return Reader(module.hidden, slice(0, module.begin)), Reader(module.skip, slice(module.begin, None))
    return (Reader(module, ALL),)


class NormedLayer:
    """A layer that normalizes its own input; the norm before it must pass its input through."""

    def __init__(self, described: fusions.NormedLayer, part: Part, between: Between) -> None:
        self._norm: nn.GroupNorm = part(described.norm)
        self._layer: IntegerModule = part(described.layer)
        self._silu, self._glue = described.activation is not None, between.glue

    def __call__(self, x: Tensor) -> Tensor:
        layer = self._layer
        x_q = self._glue.group_norm(x, self._norm, layer.grid, padding=layer.border, silu=self._silu)
        return layer.multiply(x_q, x.dtype)


class UpsampledConv:
    """Each pixel is quantized once and written four times."""

    def __init__(self, described: fusions.UpsampledConv, part: Part) -> None:
        self._conv: IntegerModule = part(described.conv)

    def __call__(self, x: Tensor, output_size: Any = None, *_: Any, **__: Any) -> Tensor:
        height, width = x.shape[-2:]
        if output_size is None or tuple(output_size) == (2 * height, 2 * width):
            return self._conv.multiply(self._conv.quantize(x, upsample=2), x.dtype)
        return self._conv(F.interpolate(x, size=output_size, mode="nearest"))


class ImageTransformer:
    """Pixels become tokens and pixels again without being moved: both lie in channels-last memory."""

    def __init__(
        self, described: fusions.ImageTransformer, part: Part, between: Between, original: Callable[..., Any]
    ) -> None:
        self._norm: nn.GroupNorm = part(described.norm)
        self._proj_in: IntegerModule = part(described.proj_in)
        self._proj_out: IntegerModule = part(described.proj_out)
        self._blocks = [part(name) for name in described.blocks]
        self._glue, self._original = between.glue, original

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
        dtype, image = x.dtype, self._proj_in.is_image
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
    def __init__(self, described: fusions.ResidualBlock, part: Part, between: Between) -> None:
        self._norm1: nn.GroupNorm = part(described.norm1)
        self._readers = _readers(part(described.conv1))
        self._norm2: nn.GroupNorm = part(described.norm2)
        self._conv2: IntegerModule = part(described.conv2)
        self._time: IntegerModule | None = part(described.time_projection) if described.time_projection else None
        self._shortcut: IntegerModule | None = part(described.shortcut) if described.shortcut else None
        self._glue, self._step = between.glue, between.step
        self._times = between.memory(128)

    def __call__(self, x: Tensor, temb: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        conv2, h = self._conv2, self._first(x)
        time = self._time_added(temb) if self._time is not None and temb is not None else None
        h_q = self._glue.group_norm(h, self._norm2, conv2.grid, padding=conv2.border, silu=True, add=time)
        return conv2.multiply(h_q, x.dtype, residual=x if self._shortcut is None else self._shortcut(x))

    def _first(self, x: Tensor) -> Tensor:
        """``conv1(silu(norm1(x)))``."""
        h: Any = None
        for reader in self._readers:
            conv: IntegerModule = reader.layer
            x_q = self._glue.group_norm(
                x, self._norm1, conv.grid, padding=conv.border, silu=True, channels=reader.channels
            )
            h = conv.multiply(x_q, x.dtype, residual=h)
        result: Tensor = h
        return result

    def _time_added(self, temb: Tensor) -> Tensor:
        """(N, C): the same for every generation's call of this timestep, unless the text takes part in it."""
        assert self._time is not None
        layer = self._time
        return self._times.get(self._step(), temb, lambda: layer(F.silu(temb)).float())


class TransformerBlock:
    def __init__(
        self, described: fusions.TransformerBlock, part: Part, between: Between, original: Callable[..., Tensor]
    ) -> None:
        self._glue, self._original = between.glue, original
        self._norm1: nn.LayerNorm = part(described.norm1)
        self._self = SelfAttention(described.self_attention, part, between)
        self._norm2: nn.LayerNorm | None = part(described.norm2) if described.norm2 else None
        crossed = described.cross_attention
        self._cross = CrossAttention(crossed, part, between) if crossed else None
        self._norm3: nn.LayerNorm = part(described.norm3)
        self._expand: IntegerModule = part(described.expand)
        self._shrink: IntegerModule = part(described.shrink)

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


class _Attention:
    def __init__(self, described: fusions.Attention, part: Part, between: Between) -> None:
        self._query: IntegerModule = part(described.query)
        self._key: IntegerModule = part(described.key)
        self._value: IntegerModule = part(described.value)
        self._output: IntegerModule = part(described.output)
        self._heads, self._glue, self._attention = described.heads, between.glue, between.attention

    def _attend(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attended = self._attention(query, key, value, self._heads)
        return self._output.multiply(self._output.quantize(attended), x.dtype, residual=x)


class SelfAttention(_Attention):
    """``x + attention(norm(x))``; layers whose grids are equal share the quantized input."""

    def __call__(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        known: dict[Hashable, Any] = {}
        projected = []
        for layer in (self._query, self._key, self._value):
            grid = layer.grid
            if grid not in known:
                known[grid] = self._glue.layer_norm(x, norm, grid)
            projected.append(layer.multiply(known[grid], x.dtype))
        return self._attend(x, *projected)


class CrossAttention(_Attention):
    """``x + attention(norm(x), text)``; keys and values of a text are computed once, not once per step."""

    def __init__(self, described: fusions.Attention, part: Part, between: Between) -> None:
        super().__init__(described, part, between)
        self._keys, self._values = between.memory(4), between.memory(4)

    def __call__(self, x: Tensor, norm: nn.LayerNorm, text: Tensor) -> Tensor:
        query = self._query.multiply(self._glue.layer_norm(x, norm, self._query.grid), x.dtype)
        key = self._keys.get(self._key.grid, text, lambda: self._key(text))
        value = self._values.get(self._value.grid, text, lambda: self._value(text))
        return self._attend(x, query, key, value)
