"""Layers that emulate integers in float32: the reference runtime, and layers without an integer kernel."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitbrush.network.compiling import not_compiled
from bitbrush.network.inputs import row_dimensions
from bitbrush.numerics.affine import fake_quantize
from bitbrush.numerics.dynamic import fake_quantize_rows
from bitbrush.timeline.schedule import Activations, ActivationSchedule, DynamicRanges


def emulate(layer: nn.Module, fake_quantizer: Callable[[Tensor], Tensor], answer: torch.dtype = torch.float32) -> None:
    """Makes a Conv2d or Linear quantize its input, compute in float32 and return dtype ``answer``.

    All of it is part of the layer's ``forward``. So a user's pre-hook gets the original input, as from an integer
    layer, and its result is quantized. In bfloat16, rounding would change the integers of the input.

    Args:
        layer: Conv2d or Linear, changed in place.
        fake_quantizer: Quantizes and dequantizes a float32 tensor.
        answer: Dtype of the output.
    """
    layer.forward = _EmulatedForward(layer, fake_quantizer, answer)


def fake_quantizer_of(layer: nn.Module, activations: Activations) -> Callable[[Tensor], Tensor]:
    """Builds the function that quantizes and dequantizes the float32 input of ``layer``."""
    match activations:
        case ActivationSchedule() as schedule:
            return _Scheduled(schedule)
        case DynamicRanges(bits):
            return functools.partial(fake_quantize_rows, bits=bits, within=row_dimensions(layer))


class _EmulatedForward:
    def __init__(self, layer: nn.Module, fake_quantizer: Callable[[Tensor], Tensor], answer: torch.dtype) -> None:
        functools.update_wrapper(self, type(layer).forward)
        self._layer, self._fake_quantizer, self._answer = layer, fake_quantizer, answer

    @not_compiled
    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = type(self._layer).forward(self._layer, self._fake_quantizer(x.float()))
        return y.to(self._answer)


@dataclass(frozen=True)
class _Scheduled:
    schedule: ActivationSchedule

    def __call__(self, x: Tensor) -> Tensor:
        return fake_quantize(x, self.schedule.now())
