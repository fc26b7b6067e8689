"""The reference runtime: fake quantization, which defines correct results for every other runtime."""

from collections.abc import Iterable

import torch
from torch import nn

from bitbrush.network.first_token import answer_first_token
from bitbrush.network.layers import QuantizedLayer, set_weight
from bitbrush.network.lazy_weights import device_of
from bitbrush.network.packed_weight import set_packed_weight
from bitbrush.runtime.emulation import emulate, fake_quantizer_of
from bitbrush.runtime.forward import compute_in
from bitbrush.runtime.interface import Execution
from bitbrush.timeline.tracker import takes_time

EMULATED = "the reference runtime emulates integers"


class ReferenceRuntime:
    """Runtime with dequantized float32 values: ``conv(dequantize(x_q), dequantize(w_q)) + bias``.

    The integers are exact. The sum of products is in float32, where an integer runtime accumulates in int32.
    """

    name = "reference"
    description = "fake quantization in float32"
    device = None
    dtype = torch.float32

    def execution(self, original: nn.Module, layer: QuantizedLayer) -> Execution:
        """Reports that the layer is emulated."""
        return Execution(layer.name, "fake-quantized float32", EMULATED)

    def lower(self, denoiser: nn.Module, layers: Iterable[QuantizedLayer]) -> tuple[Execution, ...]:
        """Changes ``denoiser`` in place: weights are dequantized integers, inputs are fake-quantized as scheduled.

        The denoiser computes in float32 and returns the dtype of its input. Weights of a network that runs once per
        image stay packed, and each call dequantizes them.
        """
        device, repeats = device_of(denoiser), takes_time(denoiser)
        executions = tuple(
            self._lower(denoiser.get_submodule(layer.name), layer, device, repeats=repeats) for layer in layers
        )
        compute_in(denoiser, torch.float32)
        return executions

    def _lower(self, module: nn.Module, layer: QuantizedLayer, device: torch.device, *, repeats: bool) -> Execution:
        weight = layer.weight.to(device)
        if repeats:
            set_weight(module, weight.dequantize(), layer.bias)
        else:
            set_packed_weight(module, weight, layer.bias)
        emulate(module, fake_quantizer_of(module, layer.activations))
        if layer.first is not None:
            answer_first_token(module, layer.first.to(device))
        return self.execution(module, layer)
