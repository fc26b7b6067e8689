"""Fused blocks: quantized activations go from the epilogue of one layer straight into the next product.

Each block replaces the ``forward`` of a module of the denoiser. The original ``forward`` runs where a user changed a
module of the block, and for arguments that the block does not support.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitbrush.network import fusions
from bitbrush.runtime.consumers import FusionBackend, Input, IntegerModule, ModuleLookup, consumer_at, consumers_at
from bitbrush.runtime.fused_forward import ChangeLog
from bitbrush.runtime.norms import normalize_in_float32
from bitbrush.runtime.snapshot import Baseline
from bitbrush.runtime.wrappers import Slot, adds_to_output


def fuse(
    denoiser: nn.Module, described: Iterable[fusions.Fusion], kind: type[nn.Module], between: FusionBackend
) -> None:
    """Replaces the forward of each described module whose layers are all of the integer ``kind``."""
    denoiser.eval()  # fused blocks compute in eval mode: a later train() counts as a change, eval() does not
    changes = ChangeLog()
    for fusion in described:
        part: ModuleLookup = denoiser.get_submodule
        consumers = (consumer for name in _layers(fusion) for consumer in consumers_at(part, name))
        parts = (layer for consumer in consumers for layer in consumer.parts)
        if all(isinstance(layer, kind) for layer in parts):
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
    baseline = Baseline(module, own=(kind, nn.GroupNorm, nn.LayerNorm), leaves=leaves, accepts=adds_to_output)
    module.forward = between.forward(fusion.name, module, block, baseline, changes)


def _layers(fusion: fusions.Fusion) -> tuple[str, ...]:
    """Lists the layers that must be integer layers for a fusion."""
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


class UpsampledConv:
    """Upsampling convolution that quantizes each pixel once and writes it four times."""

    def __init__(self, described: fusions.UpsampledConv, part: ModuleLookup) -> None:
        self._conv = consumer_at(part, described.conv)

    def __call__(self, hidden_states: Tensor, output_size: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Takes the arguments of diffusers' ``Upsample2D.forward``."""
        x = hidden_states
        height, width = x.shape[-2:]
        if args or kwargs or (output_size is not None and tuple(output_size) != (2 * height, 2 * width)):
            return NotImplemented
        upsampled = Input(lambda layer: layer.quantize(x, upsample=2), lambda: F.interpolate(x, scale_factor=2.0))
        return self._conv.product(upsampled, x.dtype)


class ImageTransformer:
    """Transformer of an image; pixels and tokens share channels-last memory, so neither is copied."""

    def __init__(self, described: fusions.ImageTransformer, part: ModuleLookup, between: FusionBackend) -> None:
        self._norm: nn.GroupNorm = part(described.norm)
        self._proj_in, self._proj_out = consumer_at(part, described.proj_in), consumer_at(part, described.proj_out)
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
        """Takes the arguments of diffusers' ``Transformer2DModel.forward``."""
        if args or return_dict or attention_mask is not None or encoder_attention_mask is not None:
            return NotImplemented
        x = hidden_states.contiguous(memory_format=torch.channels_last)
        image = self._proj_in.layer.is_image
        read = x if image else tokens(x)
        normed = Input(
            lambda layer: self._fused_ops.group_norm(read, self._norm, layer.qparams),
            lambda: self._norm(x) if image else tokens(self._norm(x)),
        )
        h = self._proj_in.product(normed, x.dtype)
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
    """Views channels-last (N, C, H, W) as (N, HW, C); both share memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def pixels(x: Tensor, like: Tensor) -> Tensor:
    """Inverts :func:`tokens`, with the H and W of ``like``."""
    image: Tensor = x.unflatten(1, tuple(like.shape[-2:])).permute(0, 3, 1, 2)
    return image


class ResidualBlock:
    """Residual block of two convolutions: ``shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))) + time)))``."""

    def __init__(self, described: fusions.ResidualBlock, part: ModuleLookup, between: FusionBackend) -> None:
        self._norm1: nn.GroupNorm = part(described.norm1)
        self._conv1 = consumers_at(part, described.conv1)
        self._norm2: nn.GroupNorm = part(described.norm2)
        self._conv2 = consumer_at(part, described.conv2)
        self._projection = Slot.at(part, described.time_projection) if described.time_projection else None
        self._time = between.of_time(self._projection.layer) if self._projection else None
        self._shortcut = Slot.at(part, described.shortcut) if described.shortcut else None
        self._fused_ops = between.fused_ops

    def __call__(self, input_tensor: Tensor, temb: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Takes the arguments of diffusers' ``ResnetBlock2D.forward``."""
        if args or kwargs:
            return NotImplemented
        x = input_tensor
        h, time = self._first(x), self._time_term(temb)

        def quantize(conv: IntegerModule) -> Any:
            return self._fused_ops.group_norm(h, self._norm2, conv.qparams, padding=conv.border, silu=True, add=time)

        def exact() -> Tensor:
            return F.silu(self._norm2(h if time is None else (h + time[:, :, None, None]).to(h.dtype)))

        return self._conv2.product(Input(quantize, exact), x.dtype, residual=self._skipped(x))

    def _skipped(self, x: Tensor) -> Tensor:
        if self._shortcut is None:
            return x
        return self._shortcut.adapt(self._shortcut.layer(x), lambda: x)

    def _time_term(self, temb: Tensor | None) -> Tensor | None:
        if self._time is None or self._projection is None or temb is None:
            return None
        return self._projection.adapt(self._time(temb), lambda: F.silu(temb))

    def _first(self, x: Tensor) -> Tensor:
        """Computes ``conv1(silu(norm1(x)))``."""
        h: Any = None
        for consumer in self._conv1:
            normed = Input(partial(self._normed, x, consumer.channels), lambda: F.silu(self._norm1(x)))
            h = consumer.product(normed, x.dtype, residual=h)
        result: Tensor = h
        return result

    def _normed(self, x: Tensor, channels: slice, conv: IntegerModule) -> Any:
        return self._fused_ops.group_norm(
            x, self._norm1, conv.qparams, padding=conv.border, silu=True, channels=channels
        )


class TransformerBlock:
    """Transformer block: self-attention, optional cross-attention and a GEGLU feed-forward network."""

    def __init__(self, described: fusions.TransformerBlock, part: ModuleLookup, between: FusionBackend) -> None:
        self._fused_ops = between.fused_ops
        self._norm1: nn.LayerNorm = part(described.norm1)
        self._self = SelfAttention(described.self_attention, part, between)
        self._norm2: nn.LayerNorm | None = part(described.norm2) if described.norm2 else None
        crossed = described.cross_attention
        self._cross = CrossAttention(crossed, part, between) if crossed else None
        self._norm3: nn.LayerNorm = part(described.norm3)
        self._expand, self._shrink = consumer_at(part, described.expand), consumer_at(part, described.shrink)

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
        """Takes the arguments of diffusers' ``BasicTransformerBlock.forward``."""
        text = encoder_hidden_states  # a tuple with image tokens under an IP-Adapter
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
        """Computes ``x + shrink(value gelu(gate))``."""

        def normed(layer: IntegerModule) -> Any:
            return self._fused_ops.layer_norm(x, self._norm3, layer.qparams)

        expand, shrink = self._expand, self._shrink
        if expand.alone and shrink.alone:
            gated = expand.layer.multiply_gated(normed(expand.layer), shrink.layer.qparams, x.dtype)
            return shrink.layer.multiply(gated, x.dtype, residual=x)
        inner = expand.product(Input(normed, lambda: self._norm3(x)), x.dtype)
        gated_input = Input(lambda layer: self._fused_ops.geglu(inner, layer.qparams), lambda: geglu(inner))
        return shrink.product(gated_input, x.dtype, residual=x)


def geglu(x: Tensor) -> Tensor:
    """Computes ``value * gelu(gate)`` of the halves of the last dimension."""
    value, gate = x.chunk(2, -1)
    return value * F.gelu(gate)


class _Attention:
    def __init__(self, described: fusions.Attention, part: ModuleLookup, between: FusionBackend) -> None:
        self._output = consumer_at(part, described.output)
        self._heads, self._fused_ops, self._attention = described.heads, between.fused_ops, between.attention

    def _normed(self, x: Tensor, norm: nn.LayerNorm) -> Input:
        return Input(lambda layer: self._fused_ops.layer_norm(x, norm, layer.qparams), lambda: norm(x))

    def _attend(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attended = self._attention(query, key, value, self._heads)
        return self._output.of(attended, residual=x)


class SelfAttention(_Attention):
    """Self-attention with its residual connection: ``x + attention(norm(x))``."""

    def __init__(self, described: fusions.Attention, part: ModuleLookup, between: FusionBackend) -> None:
        super().__init__(described, part, between)
        consumers = [consumer_at(part, name) for name in (described.query, described.key, described.value)]
        self._products = between.together(consumers)

    def __call__(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Computes the block for tokens (N, L, C)."""
        return self._attend(x, *self._products(self._normed(x, norm), x.dtype))


class CrossAttention(_Attention):
    """Cross-attention with its residual connection: ``x + attention(norm(x), text)``."""

    def __init__(self, described: fusions.Attention, part: ModuleLookup, between: FusionBackend) -> None:
        super().__init__(described, part, between)
        self._query = consumer_at(part, described.query)
        self._slots = Slot.at(part, described.key), Slot.at(part, described.value)
        self._readings = [between.of_text(slot.layer) for slot in self._slots]

    def __call__(self, x: Tensor, norm: nn.LayerNorm, text: Tensor) -> Tensor:
        """Computes the block for tokens (N, L, C) and text (N, M, D)."""
        query = self._query.product(self._normed(x, norm), x.dtype)
        read = zip(self._slots, self._readings, strict=True)
        key, value = (slot.adapt(reading(text), lambda: text) for slot, reading in read)
        return self._attend(x, query, key, value)
