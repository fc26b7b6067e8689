"""The runtime of reference: fake quantization, the definition of correct for every other runtime."""

from collections.abc import Iterable

from torch import nn
from torch.utils.hooks import RemovableHandle

from bitbrush.network.inputs import fake_quantize_input
from bitbrush.network.layers import QuantizedLayer
from bitbrush.timeline.clock import Clock


class ReferenceRuntime:
    """Computes with float32 copies of the integers: ``conv(dequantize(x_q), dequantize(w_q)) + bias``.

    Exact in the integers; the sum over products is float32's, where an integer runtime accumulates in int32.
    """

    name = "reference"

    def lower(self, denoiser: nn.Module, layers: Iterable[QuantizedLayer]) -> list[RemovableHandle]:
        """Changes ``denoiser`` in place: weights as the integers represent them, inputs quantized as scheduled."""
        clock = Clock()
        handles = [clock.attach(denoiser)]
        for layer in layers:
            module = denoiser.get_submodule(layer.name)
            assert isinstance(module, nn.Conv2d | nn.Linear)
            module.weight.data = layer.weight.dequantize().to(module.weight)
            handles.append(fake_quantize_input(module, lambda layer=layer: layer.activations.at(clock.timestep)))
        return handles
