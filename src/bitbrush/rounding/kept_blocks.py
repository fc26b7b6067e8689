"""Conversion of a learned block to named tensors and back, for the journal of learned rounding."""

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from bitbrush.numerics.weights import QuantizedWeight, WeightQParams
from bitbrush.rounding.nearest import RoundedLayer

GENERATOR = "generator"


def block_tensors(layers: Mapping[str, RoundedLayer], generator: Generator) -> dict[str, Tensor]:
    """Converts the layers' integers and biases, and the final state of the sample generator, to tensors."""
    tensors = {GENERATOR: generator.get_state()}
    for name, layer in layers.items():
        qparams = layer.weight.qparams
        tensors |= {
            f"{name}.w_q": layer.weight.w_q,
            f"{name}.scale": qparams.scale,
            f"{name}.zero_point": qparams.zero_point,
            f"{name}.bits": torch.tensor(qparams.bits),
        }
        if layer.bias is not None:
            tensors[f"{name}.bias"] = layer.bias
    return tensors


def block_from_tensors(
    names: Sequence[str], tensors: Mapping[str, Tensor], generator: Generator
) -> dict[str, RoundedLayer]:
    """Restores the layers of :func:`block_tensors` by name and sets the state of ``generator``."""
    generator.set_state(tensors[GENERATOR])
    return {name: _layer(name, tensors) for name in names}


def _layer(name: str, tensors: Mapping[str, Tensor]) -> RoundedLayer:
    qparams = WeightQParams(tensors[f"{name}.scale"], tensors[f"{name}.zero_point"], int(tensors[f"{name}.bits"]))
    return RoundedLayer(QuantizedWeight(tensors[f"{name}.w_q"], qparams), tensors.get(f"{name}.bias"))
