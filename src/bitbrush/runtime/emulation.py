"""Layers that emulate their integers in float32: all of the reference runtime's, and what others have no kernel for."""

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
    """From now on a Conv2d or Linear quantizes its input, computes in float32 and answers in another type.

    All of it is part of the layer's ``forward``: a user's pre-hook is given the input as it comes, as from an integer
    layer, and what it returns is quantized. In bfloat16 the input's very integers would come out wrong.
    """
    layer.forward = _EmulatedForward(layer, fake_quantizer, answer)


def fake_quantizer_of(layer: nn.Module, activations: Activations) -> Callable[[Tensor], Tensor]:
    """What quantizes the float32 input of ``layer`` and dequantizes it."""
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
