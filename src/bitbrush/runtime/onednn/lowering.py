"""Puts integer layers and fused blocks into a denoiser."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from bitbrush.network import fusions
from bitbrush.network.inputs import fake_quantize_input
from bitbrush.network.layers import QuantizedLayer, set_weight
from bitbrush.runtime.interface import Execution
from bitbrush.runtime.nibbles import NIBBLE
from bitbrush.runtime.onednn.fused import ImageTransformer, NormedLayer, ResidualBlock, TransformerBlock, UpsampledConv
from bitbrush.runtime.onednn.layers import (
    IntegerConv2d,
    IntegerLayer,
    IntegerLinear,
    IntegerPointwiseConv2d,
    is_pointwise,
    pack_conv,
    pack_linear,
)
from bitbrush.runtime.onednn.weights import ExpandedWeights, Memory, NibbleWeights, Pack, Weights, signed_bytes
from bitbrush.runtime.tools import Tools
from bitbrush.timeline.clock import Clock

KERNEL = "u8 x s8, int32 sums (oneDNN)"
MOST_PRODUCTS = (2**31 - 1) // (255 * 128)
"""So many products of bytes fit into an int32 sum whatever the bytes are."""


@dataclass(frozen=True)
class Lowering:
    """One denoiser being lowered. ``dtype``: of everything between the integer products."""

    denoiser: nn.Module
    clock: Clock
    tools: Tools
    dtype: torch.dtype
    memory: Memory

    def place(self, layer: QuantizedLayer) -> Execution:
        """Puts the integer layer where the float one stands, or leaves that one with its reason told."""
        original = self.denoiser.get_submodule(layer.name)
        assert isinstance(original, nn.Conv2d | nn.Linear)
        signed = signed_bytes(layer.weight)
        reason = _reason(original, signed)
        if reason is not None or signed is None:
            self._place_reference(layer, original)
            return Execution(layer.name, f"fake-quantized {_name(self.dtype)}", reason)
        sums = signed.flatten(1).sum(1, dtype=torch.int64).double().float()
        rest = layer, sums, self._weights(layer, original, signed), self.clock, self.tools.glue
        made = _integer_layer(original, *rest)
        parent, _, own = layer.name.rpartition(".")
        setattr(self.denoiser.get_submodule(parent), own, made)
        return Execution(layer.name, KERNEL)

    def _weights(self, layer: QuantizedLayer, original: nn.Conv2d | nn.Linear, signed: Tensor) -> Weights:
        pack: Pack = pack_linear
        if isinstance(original, nn.Conv2d) and not is_pointwise(original):
            pack = partial(pack_conv, original, layer.weight.grid.scale)
        if self.memory is Memory.LOW and layer.weight.grid.bits <= NIBBLE:
            return NibbleWeights(layer.weight, pack, self.tools.unpack)
        return ExpandedWeights(signed, pack)

    def _place_reference(self, layer: QuantizedLayer, original: nn.Conv2d | nn.Linear) -> None:
        set_weight(original, layer.weight.dequantize(), layer.bias)
        fake_quantize_input(original, lambda: layer.activations.at(self.clock.timestep))

    def convert_rest(self) -> None:
        """Everything else to ``dtype``, save norms, which compute with float32 parameters whatever their input is."""
        for module in self.denoiser.modules():
            if not isinstance(module, nn.GroupNorm | nn.LayerNorm | IntegerLayer):
                for name, parameter in module.named_parameters(recurse=False):
                    setattr(module, name, nn.Parameter(parameter.to(self.dtype), requires_grad=False))

    def fuse(self, described: Iterable[fusions.Fusion]) -> None:
        """Computes in one go what the family describes and whose layers all are in integers."""
        for fusion in described:
            if all(isinstance(self._part(name), IntegerLayer) for name in _layers(fusion)):
                self._install(fusion)

    def _part(self, name: str) -> nn.Module:
        return self.denoiser.get_submodule(name)

    def _install(self, fusion: fusions.Fusion) -> None:
        glue, part = self.tools.glue, self._part
        match fusion:
            case fusions.NormedLayer():
                fused: Callable[..., Any] = NormedLayer(fusion, part, glue)
                part(fusion.layer).forward = fused
                for passed in filter(None, (fusion.norm, fusion.activation)):
                    setattr(self.denoiser, passed, nn.Identity())
                return
            case fusions.UpsampledConv():
                fused = UpsampledConv(fusion, part)
            case fusions.ResidualBlock():
                fused = ResidualBlock(fusion, part, glue, self.clock)
            case fusions.TransformerBlock():
                fused = TransformerBlock(fusion, part, glue, self.tools.attention, part(fusion.name).forward)
            case fusions.ImageTransformer():
                fused = ImageTransformer(fusion, part, glue, part(fusion.name).forward)
        part(fusion.name).forward = fused


def _integer_layer(original: nn.Conv2d | nn.Linear, *args: Any) -> IntegerLayer:
    match original:
        case nn.Linear():
            return IntegerLinear(original, *args)
        case _ if is_pointwise(original):
            return IntegerPointwiseConv2d(original, *args)
        case _:
            return IntegerConv2d(original, *args)


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


def _reason(layer: nn.Conv2d | nn.Linear, signed: Tensor | None) -> str | None:
    """Why a layer cannot be multiplied in integers; None if it can."""
    if signed is None:
        return "weights less their zero point are no signed bytes"
    products = signed[0].numel()
    if products > MOST_PRODUCTS:
        return f"{products} products per output may overflow int32 sums; at most {MOST_PRODUCTS} cannot"
    if isinstance(layer, nn.Conv2d):
        if layer.padding_mode != "zeros":
            return f"padding mode {layer.padding_mode}; integer convolutions pad with zeros"
        if isinstance(layer.padding, str) or len(set(layer.padding)) > 1:
            return f"padding {layer.padding}; integer convolutions pad all sides alike"
    return None


def compute_in(denoiser: nn.Module, dtype: torch.dtype) -> None:
    """From now on calls are computed in ``dtype``, all but the timestep, and answered in the sample's own dtype."""
    expected = signature(denoiser.forward)
    dtypes: list[torch.dtype] = []

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        bound = expected.bind(*args, **kwargs)
        dtypes[:] = [next(iter(bound.arguments.values())).dtype]
        kept = bound.arguments.get("timestep")
        bound.arguments.update({key: _cast(value, dtype) for key, value in bound.arguments.items()})
        bound.arguments["timestep"] = kept
        return bound.args, bound.kwargs

    def leave(_: nn.Module, __: Any, output: Any) -> Any:
        return _cast(output, dtypes[0])

    denoiser.register_forward_pre_hook(enter, with_kwargs=True)
    denoiser.register_forward_hook(leave)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    match value:
        case Tensor() if value.is_floating_point():
            return value.to(dtype)
        case tuple() | list():
            return type(value)(_cast(item, dtype) for item in value)
        case dict():  # diffusers' outputs are dictionaries, too
            return type(value)(**{key: _cast(item, dtype) for key, item in value.items()})
        case _:
            return value


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
