"""Replacement of a denoiser's layers by integer layers, and the move of the rest to the device."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from bitbrush.network.first_token import answer_first_token
from bitbrush.network.layers import QuantizedLayer, set_weight
from bitbrush.network.packed_weight import set_packed_weight
from bitbrush.runtime.cuda.fused_ops import CudaFusedOps
from bitbrush.runtime.cuda.layers import IntegerConv2d, IntegerLayer, IntegerLinear
from bitbrush.runtime.cuda.steps import StepQParams, Steps
from bitbrush.runtime.cuda.weights import lay_out
from bitbrush.runtime.emulation import emulate, fake_quantizer_of
from bitbrush.runtime.integers import needs_schedule, obstacle, signed_bytes
from bitbrush.runtime.interface import Execution
from bitbrush.runtime.norms import normalize_in_float32
from bitbrush.timeline.schedule import ActivationSchedule
from bitbrush.timeline.tracker import takes_time

KERNEL = "s8 x s8, int32 sums (Triton)"
EMULATION = "fake-quantized float32"
_NORMS = nn.GroupNorm, nn.LayerNorm


@dataclass(frozen=True)
class Lowering:
    """Lowering of one denoiser.

    Attributes:
        denoiser: Changed in place.
        steps: Buffers of the quantization parameters of the current step.
        ops: Module of the kernels.
        dtype: Dtype of everything between the products.
        nibbles: Whether weights of up to 4 bits take half a byte.
        emulated: Layers that are emulated in float32.
    """

    denoiser: nn.Module
    steps: Steps
    ops: ModuleType
    dtype: torch.dtype
    nibbles: bool
    emulated: list[nn.Module] = field(default_factory=list)

    def place(self, layer: QuantizedLayer) -> Execution:
        """Replaces the float layer by an integer layer, or emulates it and reports why."""
        executed = self._place(layer)
        if layer.first is not None:
            answer_first_token(self.denoiser.get_submodule(layer.name), layer.first.to(self.steps.device))
        return executed

    def _place(self, layer: QuantizedLayer) -> Execution:
        original = self.denoiser.get_submodule(layer.name)
        assert isinstance(original, nn.Conv2d | nn.Linear)
        signed = signed_bytes(layer.weight)
        executed = execution(original, layer, signed)
        if executed.fallback is not None or signed is None:
            self._emulate(layer, original)
            return executed
        qparams = self.steps.qparams(layer.schedule)
        weights = lay_out(layer, signed, self.steps.device, nibbles=self.nibbles)
        made = _integer_layer(original, weights, qparams, CudaFusedOps(self.ops))
        parent, _, own = layer.name.rpartition(".")
        setattr(self.denoiser.get_submodule(parent), own, made)
        return executed

    def _emulate(self, layer: QuantizedLayer, original: nn.Module) -> None:
        if takes_time(self.denoiser):
            set_weight(original, layer.weight.dequantize(), layer.bias)
        else:  # it runs once per image, and may be larger than the denoiser
            set_packed_weight(original, layer.weight, layer.bias)
        if isinstance(layer.activations, ActivationSchedule):
            quantizer: Callable[[Tensor], Tensor] = partial(_fake_quantize, self.steps.qparams(layer.schedule))
        else:
            quantizer = fake_quantizer_of(original, layer.activations)
        emulate(original, quantizer, self.dtype)
        self.emulated.append(original)

    def move_rest(self) -> None:
        """Moves all other parameters to the device and casts them to ``dtype``, except emulated layers and norms.

        These compute in float32.
        """
        for module in self.denoiser.modules():
            if isinstance(module, IntegerLayer):
                continue
            if isinstance(module, _NORMS):
                normalize_in_float32(module, self.dtype)
            wide = isinstance(module, _NORMS) or module in self.emulated
            for name, parameter in module.named_parameters(recurse=False):
                moved = parameter.to(self.steps.device, torch.float32 if wide else self.dtype)
                setattr(module, name, nn.Parameter(moved, requires_grad=False))
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self.steps.device))


def _integer_layer(original: nn.Conv2d | nn.Linear, *args: Any) -> IntegerLayer:
    if isinstance(original, nn.Linear):
        return IntegerLinear(original.in_features, *args)
    return IntegerConv2d(original, *args)


def _fake_quantize(qparams: StepQParams, x: Tensor) -> Tensor:
    """Fake-quantizes as :func:`bitbrush.numerics.affine.fake_quantize` does, by the step's qparams on the device."""
    scale, reciprocal = qparams.scales[0], qparams.scales[1]
    zero_point, qmax = qparams.integers[0].float(), qparams.integers[1].float()
    return (x * reciprocal).round().clamp(-zero_point, qmax - zero_point) * scale


def execution(original: nn.Module, layer: QuantizedLayer, signed: Tensor | None) -> Execution:
    """Names the kernel for a layer with these signed weights, and the reason if it is no integer kernel."""
    reason = needs_schedule(layer) or obstacle(original, signed)
    if isinstance(original, nn.Conv2d) and isinstance(original.padding, str):
        reason = f"padding {original.padding!r}; integer convolutions pad by numbers"
    return Execution(layer.name, KERNEL) if reason is None else Execution(layer.name, EMULATION, reason)
