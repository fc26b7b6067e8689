"""Blocks computed in one go: quantized activations go straight from one layer's epilogue into the next one's product.

Each stands behind the ``forward`` of one of the denoiser's modules. The module's own is called instead where a user
changed a module of the block, and for calls with arguments that a description does not tell of.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitbrush.network import fusions
from bitbrush.network.low_rank import BranchedLayer
from bitbrush.network.skip_inputs import SplitConv2d
from bitbrush.runtime.attention import AttentionKernel
from bitbrush.runtime.fused_forward import ChangeLog, FusedForward
from bitbrush.runtime.fused_ops import ALL
from bitbrush.runtime.norms import normalize_in_float32
from bitbrush.runtime.snapshot import Snapshot

ModuleLookup: TypeAlias = Callable[[str], Any]
"""The denoiser's module of a name, as it is after its layers were replaced."""


class IntegerModule(Protocol):
    """What a runtime puts where a quantized layer stood.

    ``qparams``: of its input, now; equal ones share a quantized input. ``border``: the pixels around it that it wants;
    ``is_image``: takes (N, C, H, W), not tokens. What quantized input is, only the runtime's own fused ops and layers
    know.
    """

    is_image: bool

    @property
    def border(self) -> Any: ...

    @property
    def qparams(self) -> Hashable: ...

    def __call__(self, x: Tensor) -> Tensor: ...

    def quantize(self, x: Tensor, *, upsample: int = 1) -> Any: ...

    def multiply(self, x: Any, dtype: torch.dtype, residual: Tensor | None = None) -> Tensor: ...

    def multiply_gated(self, x: Any, qparams: Any, dtype: torch.dtype) -> Any:
        """``value * gelu(gate)`` quantized on another layer's ``qparams``, of the halves of :meth:`multiply`."""
        ...


Quantize: TypeAlias = Callable[[IntegerModule], Any]
"""One input on the grid of a layer that reads it."""
Products: TypeAlias = Callable[[Quantize, torch.dtype], Sequence[Tensor]]
Reading: TypeAlias = Callable[[Tensor], Tensor]
"""A layer's output, of a tensor that many blocks are given."""


@dataclass(frozen=True)
class FusionBackend:
    """What blocks compute with between their products, by means of the runtime.

    ``fused_ops``: with the methods of :class:`~bitbrush.runtime.fused_ops.FusedOps`, for the runtime's own grids.
    ``together``: the products of what reads one input. ``of_text``: a layer of the text's embedding. ``of_time``: a
    projection of the time's, ``layer(silu(t))``, (N, C) float32. The last two are given the same tensor by all blocks,
    and often the same values by many calls: runtimes may remember them or compute them at once. ``forward``: of blocks.
    """

    fused_ops: Any
    attention: AttentionKernel
    together: Callable[["Sequence[Consumer]"], Products]
    of_text: Callable[[nn.Module], Reading]
    of_time: Callable[[nn.Module], Reading]
    forward: type[FusedForward] = FusedForward


def fuse(
    denoiser: nn.Module, described: Iterable[fusions.Fusion], kind: type[nn.Module], between: FusionBackend
) -> None:
    """Computes in one go what the family describes and whose layers all are of the ``kind`` that is in integers."""
    denoiser.eval()  # as blocks are computed from now on: train() is a change, eval() is none
    changes = ChangeLog()
    for fusion in described:
        modules = [denoiser.get_submodule(name) for name in _layers(fusion)]
        parts = (part for module in modules for consumer in _consumers(module) for part in consumer.parts)
        if all(isinstance(part, kind) for part in parts):
            _install(denoiser, fusion, kind, between, changes)


def _install(
    denoiser: nn.Module, fusion: fusions.Fusion, kind: type[nn.Module], between: FusionBackend, changes: ChangeLog
) -> None:
    part: ModuleLookup = denoiser.get_submodule
    block: Callable[..., Any]
    leaves: list[nn.Module] = []
    match fusion:
        case fusions.PreciseNorm():
            normalize_in_float32(part(fusion.name), torch.float32)
            return
        case fusions.UpsampledConv():
            block = UpsampledConv(fusion, part)
        case fusions.ResidualBlock():
            block = ResidualBlock(fusion, part, between)
        case fusions.TransformerBlock():
            block = TransformerBlock(fusion, part, between)
        case fusions.ImageTransformer():
            block = ImageTransformer(fusion, part, between)
            leaves = [part(name) for name in fusion.blocks]
    module = part(fusion.name)
    snapshot = Snapshot(module, own=(kind, nn.GroupNorm, nn.LayerNorm), leaves=leaves)
    module.forward = between.forward(fusion.name, module, block, snapshot, changes)


def _layers(fusion: fusions.Fusion) -> tuple[str, ...]:
    """The layers that must be in integers for a fusion."""
    match fusion:
        case fusions.PreciseNorm():
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
class Consumer:
    """What reads some channels of an input: a layer by itself, or with a branch beside it."""

    layer: IntegerModule
    channels: slice
    branch: "_Branch | None" = None

    @property
    def parts(self) -> tuple[IntegerModule, ...]:
        return (self.layer,) if self.branch is None else (self.layer, self.branch.down, self.branch.up)

    @property
    def qparams(self) -> Hashable:
        """Of all parts, now."""
        return tuple(part.qparams for part in self.parts)

    def product(self, quantize: Quantize, dtype: torch.dtype, residual: Tensor | None = None) -> Tensor:
        """The output, ``residual`` added; ``quantize(part)``: the input on the grid of a part that reads it."""
        if self.branch is not None:
            thin = self.branch.down.multiply(quantize(self.branch.down), dtype)
            residual = self.branch.up.multiply(self.branch.up.quantize(thin), dtype, residual)
        return self.layer.multiply(quantize(self.layer), dtype, residual)

    def of(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """:meth:`product` of an input that nothing comes before."""
        return self.product(lambda part: part.quantize(x), x.dtype, residual)


class _Branch(NamedTuple):
    down: IntegerModule
    up: IntegerModule


@dataclass(frozen=True)
class OneByOne:
    """Products of one input, which is quantized once for all ``consumers`` that have the same grid."""

    consumers: "Sequence[Consumer]"

    def __call__(self, quantize: Quantize, dtype: torch.dtype) -> list[Tensor]:
        known: dict[Hashable, Any] = {}

        def once(layer: IntegerModule) -> Any:
            qparams = layer.qparams
            if qparams not in known:
                known[qparams] = quantize(layer)
            return known[qparams]

        return [one.product(once, dtype) for one in self.consumers]


def project_time(layer: nn.Module, embedded: Tensor) -> Tensor:
    """(N, C) float32: what a residual block adds at a timestep."""
    y: Tensor = layer(F.silu(embedded)).float()
    return y


def _consumers(module: Any) -> tuple[Consumer, ...]:
    """What stands for a layer of the denoiser: itself, or the halves of a convolution that reads a skip."""
    if isinstance(module, SplitConv2d):
        halves = {module.hidden: slice(0, module.begin), module.skip: slice(module.begin, None)}
        return tuple(replace(consumer_of(half), channels=channels) for half, channels in halves.items())
    return (consumer_of(module),)


def consumer_of(module: Any) -> Consumer:
    """What reads the input of a layer, as the runtime has put it in place."""
    if isinstance(module, BranchedLayer):
        down: Any = module.down
        up: Any = module.up
        residual: Any = module.residual
        return Consumer(residual, ALL, _Branch(down, up))
    return Consumer(module, ALL)


class UpsampledConv:
    """Each pixel is quantized once and written four times."""

    def __init__(self, described: fusions.UpsampledConv, part: ModuleLookup) -> None:
        self._conv = consumer_of(part(described.conv))

    def __call__(self, hidden_states: Tensor, output_size: Any = None, *args: Any, **kwargs: Any) -> Any:
        x = hidden_states
        height, width = x.shape[-2:]
        if args or kwargs or (output_size is not None and tuple(output_size) != (2 * height, 2 * width)):
            return NotImplemented
        return self._conv.product(lambda layer: layer.quantize(x, upsample=2), x.dtype)


class ImageTransformer:
    """Pixels become tokens and pixels again without being moved: both lie in channels-last memory."""

    def __init__(self, described: fusions.ImageTransformer, part: ModuleLookup, between: FusionBackend) -> None:
        self._norm: nn.GroupNorm = part(described.norm)
        self._proj_in, self._proj_out = consumer_of(part(described.proj_in)), consumer_of(part(described.proj_out))
        self._blocks = [part(name) for name in described.blocks]
        self._fused_ops = between.fused_ops

    def __call__(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        timestep: Tensor | None = None,
        added_cond_kwargs: Any = None,
        class_labels: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        *args: Any,
        return_dict: bool = True,
    ) -> Any:
        if args or return_dict or attention_mask is not None or encoder_attention_mask is not None:
            return NotImplemented
        x = hidden_states.contiguous(memory_format=torch.channels_last)
        image = self._proj_in.layer.is_image
        read = x if image else tokens(x)
        h = self._proj_in.product(lambda layer: self._fused_ops.group_norm(read, self._norm, layer.qparams), x.dtype)
        h = tokens(h) if image else h
        for block in self._blocks:
            h = block(
                h,
                attention_mask=None,
                encoder_hidden_states=encoder_hidden_states,
                encoder_attention_mask=None,
                timestep=timestep,
                cross_attention_kwargs=cross_attention_kwargs,
                class_labels=class_labels,
            )
        h = pixels(h, x) if image else h
        y = self._proj_out.of(h, residual=read)
        return (y if image else pixels(y, x),)


def tokens(x: Tensor) -> Tensor:
    """(N, C, H, W) channels-last as (N, HW, C), the same memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def pixels(x: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`tokens`, H and W those of ``like``."""
    image: Tensor = x.unflatten(1, tuple(like.shape[-2:])).permute(0, 3, 1, 2)
    return image


class ResidualBlock:
    def __init__(self, described: fusions.ResidualBlock, part: ModuleLookup, between: FusionBackend) -> None:
        self._norm1: nn.GroupNorm = part(described.norm1)
        self._consumers = _consumers(part(described.conv1))
        self._norm2: nn.GroupNorm = part(described.norm2)
        self._conv2 = consumer_of(part(described.conv2))
        projection = described.time_projection
        self._time = between.of_time(part(projection)) if projection else None
        self._shortcut: nn.Module | None = part(described.shortcut) if described.shortcut else None
        self._fused_ops = between.fused_ops

    def __call__(self, input_tensor: Tensor, temb: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            return NotImplemented
        x = input_tensor
        h = self._first(x)
        time = self._time(temb) if self._time is not None and temb is not None else None

        def quantize(conv: IntegerModule) -> Any:
            return self._fused_ops.group_norm(h, self._norm2, conv.qparams, padding=conv.border, silu=True, add=time)

        return self._conv2.product(quantize, x.dtype, residual=x if self._shortcut is None else self._shortcut(x))

    def _first(self, x: Tensor) -> Tensor:
        """``conv1(silu(norm1(x)))``."""
        h: Any = None
        for consumer in self._consumers:
            quantize = partial(self._normed, x, consumer.channels)
            h = consumer.product(quantize, x.dtype, residual=h)
        result: Tensor = h
        return result

    def _normed(self, x: Tensor, channels: slice, conv: IntegerModule) -> Any:
        return self._fused_ops.group_norm(
            x, self._norm1, conv.qparams, padding=conv.border, silu=True, channels=channels
        )


class TransformerBlock:
    def __init__(self, described: fusions.TransformerBlock, part: ModuleLookup, between: FusionBackend) -> None:
        self._fused_ops = between.fused_ops
        self._norm1: nn.LayerNorm = part(described.norm1)
        self._self = SelfAttention(described.self_attention, part, between)
        self._norm2: nn.LayerNorm | None = part(described.norm2) if described.norm2 else None
        crossed = described.cross_attention
        self._cross = CrossAttention(crossed, part, between) if crossed else None
        self._norm3: nn.LayerNorm = part(described.norm3)
        self._expand, self._shrink = consumer_of(part(described.expand)), consumer_of(part(described.shrink))

    def __call__(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: Any = None,
    ) -> Any:
        text = encoder_hidden_states  # of an IP-Adapter a tuple, with an image's tokens
        if (
            attention_mask is not None
            or encoder_attention_mask is not None
            or cross_attention_kwargs
            or isinstance(text, Tensor) is (self._cross is None)
        ):
            return NotImplemented
        x = self._self(hidden_states, self._norm1)
        if self._cross is not None and self._norm2 is not None:
            x = self._cross(x, self._norm2, text)
        return self._feed_forward(x)

    def _feed_forward(self, x: Tensor) -> Tensor:
        """``x + shrink(value gelu(gate))``."""

        def normed(layer: IntegerModule) -> Any:
            return self._fused_ops.layer_norm(x, self._norm3, layer.qparams)

        expand, shrink = self._expand, self._shrink
        if expand.branch is None and shrink.branch is None:
            gated = expand.layer.multiply_gated(normed(expand.layer), shrink.layer.qparams, x.dtype)
            return shrink.layer.multiply(gated, x.dtype, residual=x)
        inner = expand.product(normed, x.dtype)
        return shrink.product(lambda layer: self._fused_ops.geglu(inner, layer.qparams), x.dtype, residual=x)


class _Attention:
    def __init__(self, described: fusions.Attention, part: ModuleLookup, between: FusionBackend) -> None:
        self._output = consumer_of(part(described.output))
        self._heads, self._fused_ops, self._attention = described.heads, between.fused_ops, between.attention

    def _attend(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attended = self._attention(query, key, value, self._heads)
        return self._output.of(attended, residual=x)


class SelfAttention(_Attention):
    """``x + attention(norm(x))``."""

    def __init__(self, described: fusions.Attention, part: ModuleLookup, between: FusionBackend) -> None:
        super().__init__(described, part, between)
        consumers = [consumer_of(part(name)) for name in (described.query, described.key, described.value)]
        self._products = between.together(consumers)

    def __call__(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        return self._attend(
            x, *self._products(lambda layer: self._fused_ops.layer_norm(x, norm, layer.qparams), x.dtype)
        )


class CrossAttention(_Attention):
    """``x + attention(norm(x), text)``."""

    def __init__(self, described: fusions.Attention, part: ModuleLookup, between: FusionBackend) -> None:
        super().__init__(described, part, between)
        self._query = consumer_of(part(described.query))
        self._key, self._value = between.of_text(part(described.key)), between.of_text(part(described.value))

    def __call__(self, x: Tensor, norm: nn.LayerNorm, text: Tensor) -> Tensor:
        query = self._query.product(lambda layer: self._fused_ops.layer_norm(x, norm, layer.qparams), x.dtype)
        return self._attend(x, query, self._key(text), self._value(text))
