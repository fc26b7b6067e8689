"""Puts integer layers and fused blocks into a denoiser."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from bitbrush.network import fusions
from bitbrush.network.first_token import answer_first_token
from bitbrush.network.inputs import fake_quantize_input, fake_quantize_input_dynamically
from bitbrush.network.layers import QuantizedLayer, set_weight
from bitbrush.runtime.arguments import EXACT_ARGUMENTS
from bitbrush.runtime.fused import Between, Reading, fuse, one_by_one, project_time, reader_of
from bitbrush.runtime.integers import obstacle, signed_bytes
from bitbrush.runtime.interface import Execution
from bitbrush.runtime.memo import Remembered
from bitbrush.runtime.nibbles import NIBBLE
from bitbrush.runtime.onednn.dynamic import DynamicLayer, as_product
from bitbrush.runtime.onednn.layers import (
    IntegerConv2d,
    IntegerLayer,
    IntegerLinear,
    IntegerPointwiseConv2d,
    is_pointwise,
    pack_conv,
    pack_linear,
)
from bitbrush.runtime.onednn.weights import ExpandedWeights, Memory, NibbleWeights, Pack, Weights
from bitbrush.runtime.tools import Tools
from bitbrush.timeline.clock import Clock
from bitbrush.timeline.schedule import ActivationSchedule, DynamicRanges

KERNEL = "u8 x s8, int32 sums (oneDNN)"
EMULATION = "fake-quantized float32"


@dataclass(frozen=True)
class Lowering:
    """One denoiser being lowered. ``dtype``: of everything between the integer products."""

    denoiser: nn.Module
    clock: Clock
    tools: Tools
    dtype: torch.dtype
    memory: Memory
    emulated: list[nn.Module] = field(default_factory=list)

    def place(self, layer: QuantizedLayer) -> Execution:
        """Puts the integer layer where the float one stands, or leaves that one with its reason told."""
        executed = self._place(layer)
        if layer.first is not None:
            answer_first_token(self.denoiser.get_submodule(layer.name), layer.first)
        return executed

    def _place(self, layer: QuantizedLayer) -> Execution:
        original = self.denoiser.get_submodule(layer.name)
        assert isinstance(original, nn.Conv2d | nn.Linear)
        signed = signed_bytes(layer.weight)
        executed = execution(original, layer, signed)
        if executed.fallback is not None or signed is None:
            self._place_reference(layer, original)
            return executed
        sums = signed.flatten(1).sum(1, dtype=torch.int64).double().float()
        rest = layer, sums, self._weights(layer, original, signed), self.clock, self.tools.glue
        made: nn.Module
        match layer.activations:
            case ActivationSchedule():
                made = _integer_layer(original, *rest)
            case DynamicRanges(bits):
                product = _integer_layer(original, as_product(layer, bits), *rest[1:])
                made = DynamicLayer(original, layer, sums, product)
        parent, _, own = layer.name.rpartition(".")
        setattr(self.denoiser.get_submodule(parent), own, made)
        return executed

    def _weights(self, layer: QuantizedLayer, original: nn.Conv2d | nn.Linear, signed: Tensor) -> Weights:
        pack: Pack = pack_linear
        if isinstance(original, nn.Conv2d) and not is_pointwise(original):
            pack = partial(pack_conv, original, layer.weight.grid.scale)
        if self.memory is Memory.LOW and layer.weight.grid.bits <= NIBBLE:
            return NibbleWeights(layer.weight, pack, self.tools.unpack)
        return ExpandedWeights(signed, pack)

    def _place_reference(self, layer: QuantizedLayer, original: nn.Conv2d | nn.Linear) -> None:
        """In float32 whatever surrounds it: in bfloat16 the input's very integers would come out wrong."""
        set_weight(original, layer.weight.dequantize(), layer.bias)
        original.register_forward_pre_hook(lambda _, args: (args[0].float(), *args[1:]))
        match layer.activations:
            case ActivationSchedule() as schedule:
                fake_quantize_input(original, lambda: schedule.at(self.clock.timestep))
            case DynamicRanges(bits):
                fake_quantize_input_dynamically(original, bits)
        original.register_forward_hook(lambda _, __, y: y.to(self.dtype))
        self.emulated.append(original)

    def convert_rest(self) -> None:
        """The rest to ``dtype``, save emulated layers, and norms, which take float32 parameters with any input."""
        for module in self.denoiser.modules():
            if not isinstance(module, nn.GroupNorm | nn.LayerNorm | IntegerLayer) and module not in self.emulated:
                for name, parameter in module.named_parameters(recurse=False):
                    setattr(module, name, nn.Parameter(parameter.to(self.dtype), requires_grad=False))

    def fuse(self, described: Iterable[fusions.Fusion]) -> None:
        """Computes in one go what the family describes and whose layers all are in integers."""
        between = Between(self.tools.glue, self.tools.attention, one_by_one, _of_text, self._of_time)
        fuse(self.denoiser, described, IntegerLayer, between)

    def _of_time(self, layer: nn.Module) -> Reading:
        """The same for every generation's call of a timestep, unless the text takes part in it."""
        return Remembered(partial(project_time, layer), lambda: self.clock.timestep, entries=128)


def _of_text(layer: nn.Module) -> Reading:
    """Computed once for a text and a grid, not at every step."""
    return Remembered(layer, lambda: reader_of(layer).grids, entries=4)


def _integer_layer(original: nn.Conv2d | nn.Linear, *args: Any) -> IntegerLayer:
    match original:
        case nn.Linear():
            return IntegerLinear(original, *args)
        case _ if is_pointwise(original):
            return IntegerPointwiseConv2d(original, *args)
        case _:
            return IntegerConv2d(original, *args)


def execution(original: nn.Module, layer: QuantizedLayer, signed: Tensor | None) -> Execution:
    """By which kernel a layer of these signed weights is computed, and why not in integers where it is not."""
    reason = _reason(original, layer, signed)
    return Execution(layer.name, KERNEL) if reason is None else Execution(layer.name, EMULATION, reason)


def _reason(original: nn.Module, layer: QuantizedLayer, signed: Tensor | None) -> str | None:
    """Why a layer cannot be multiplied in integers; None if it can."""
    if isinstance(original, nn.Conv2d) and (isinstance(original.padding, str) or len(set(original.padding)) > 1):
        return f"padding {original.padding}; integer convolutions pad all sides alike"
    return obstacle(original, signed)


def compute_in(denoiser: nn.Module, dtype: torch.dtype) -> None:
    """From now on calls are computed in ``dtype``, but for EXACT_ARGUMENTS, and answered in the sample's own dtype.

    Integers know no NaN: where an argument is not finite, all of the answer is NaN, as in floating point.
    """
    expected = signature(denoiser.forward)
    dtypes: list[torch.dtype] = []
    finite: list[bool] = []

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        bound = expected.bind(*args, **kwargs)
        dtypes[:] = [next(iter(bound.arguments.values())).dtype]
        finite[:] = [bool(x.isfinite().all()) for x in bound.arguments.values() if isinstance(x, Tensor)]
        bound.arguments.update(_cast(dict(bound.arguments), dtype))
        return bound.args, bound.kwargs

    def leave(_: nn.Module, __: Any, output: Any) -> Any:
        return _cast(output if all(finite) else _nowhere_a_number(output), dtypes[0])

    denoiser.register_forward_pre_hook(enter, with_kwargs=True)
    denoiser.register_forward_hook(leave)


def _nowhere_a_number(output: Any) -> Any:
    match output:
        case Tensor():
            return torch.full_like(output, torch.nan)
        case tuple():
            return tuple(map(_nowhere_a_number, output))
        case _:
            return type(output)(**{key: _nowhere_a_number(item) for key, item in output.items()})


def _cast(value: Any, dtype: torch.dtype) -> Any:
    match value:
        case Tensor() if value.is_floating_point():
            return value.to(dtype)
        case tuple() | list():
            return type(value)(_cast(item, dtype) for item in value)
        case dict():  # diffusers' outputs are dictionaries, too
            kept = {key: item if key in EXACT_ARGUMENTS else _cast(item, dtype) for key, item in value.items()}
            return type(value)(**kept)
        case _:
            return value
