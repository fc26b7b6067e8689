"""Rounding of every weight to nearest, without data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitbrush.network.first_token import FirstToken, answer_first_token
from bitbrush.network.layers import LayerSpec
from bitbrush.network.lazy_weights import device_of, set_quantized_weight, shallow_copy
from bitbrush.numerics.limits import WeightRange
from bitbrush.numerics.weights import QuantizedWeight, round_to_nearest, weight_qparams
from bitbrush.session.offload import CPU


@dataclass(frozen=True)
class RoundedLayer:
    """Integers of a layer and the matching bias.

    Args:
        weight: Integers and quantization parameters.
        bias: Bias; None if the layer has none.
        first: Known first token of the prompts that the layer reads; None if there is none.
    """

    weight: QuantizedWeight
    bias: Tensor | None
    first: FirstToken | None = None

    def to(self, device: torch.device) -> "RoundedLayer":
        """Moves the layer to a device."""
        bias = None if self.bias is None else self.bias.to(device)
        return RoundedLayer(self.weight.to(device), bias, self.first and self.first.to(device))


def round_all_to_nearest(
    denoiser: nn.Module, specs: Sequence[LayerSpec], estimator: WeightRange
) -> dict[str, RoundedLayer]:
    """Rounds all layers to nearest; ``denoiser`` is unchanged.

    Args:
        denoiser: Full-precision denoiser.
        specs: Layers to round, and their bits.
        estimator: Range estimator of an output channel's weights.

    Returns:
        Rounded layers by name, on the CPU.
    """
    rounded = {}
    for spec in specs:
        layer = denoiser.get_submodule(spec.name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        weight = layer.weight.detach().float()
        bias = None if layer.bias is None else layer.bias.detach().float().clone()
        qparams = weight_qparams(weight, spec.weight_bits, estimator)
        rounded[spec.name] = RoundedLayer(round_to_nearest(weight, qparams), bias).to(CPU)
    return rounded


def with_weights(denoiser: nn.Module, rounded: Mapping[str, RoundedLayer]) -> nn.Module:
    """Returns a shallow copy of the denoiser that computes with the rounded weights, stored as integers."""
    quantized, device = shallow_copy(denoiser), device_of(denoiser)
    for name, layer in ((name, layer.to(device)) for name, layer in rounded.items()):
        set_quantized_weight(quantized.get_submodule(name), layer.weight, layer.bias)
        if layer.first is not None:
            answer_first_token(quantized.get_submodule(name), layer.first)
    return quantized
