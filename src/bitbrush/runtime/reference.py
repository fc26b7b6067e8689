"""The runtime of reference: fake quantization, the definition of correct for every other runtime."""

from collections.abc import Iterable
from functools import partial

from torch import nn
from torch.utils.hooks import RemovableHandle

from bitbrush.network.inputs import fake_quantize_input
from bitbrush.network.layers import QuantizedLayer, set_weight
from bitbrush.numerics.affine import AffineGrid
from bitbrush.timeline.clock import Clock
from bitbrush.timeline.schedule import ActivationSchedule


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
            set_weight(module, layer.weight.dequantize(), layer.bias)
            handles.append(fake_quantize_input(module, partial(_grid_now, layer.activations, clock)))
        return handles


def _grid_now(activations: ActivationSchedule, clock: Clock) -> AffineGrid:
    return activations.at(clock.timestep)
