"""Average bits of both operands over all multiplications of a denoiser's quantized layers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from bitbrush.methods.state import QuantizationState
from bitbrush.network.layers import QuantizedLayer
from bitbrush.network.products import counting_products
from bitbrush.timeline.schedule import ActivationSchedule
from bitbrush.timeline.trajectory import start


@dataclass(frozen=True)
class ProductBits:
    """Averages over all multiplications: those of branches and of layers next to the latents count like others."""

    weights: float
    activations: float


def average_product_bits(state: QuantizationState, layers: Iterable[QuantizedLayer]) -> ProductBits:
    """Averages the bits of weights and activations over the multiplications of a whole generation.

    An operand counts by the multiplications that it enters: ``sum(products * bits) / sum(products)``. The products of a
    layer are those of the first denoiser call for one prompt, which runs here. All calls are taken to have as many.

    Args:
        state: State whose denoiser, first prompt and plan are used.
        layers: Quantized layers of that denoiser.

    Returns:
        The averages; layers in floating point do not count.
    """
    quantized = tuple(layers)
    products = dict.fromkeys((layer.name for layer in quantized), 0)
    with start(state.pipe, state.family.component, state.batches[0][:1], state.recipe.plan) as trajectory:
        call = trajectory.request
        assert call is not None
        with torch.no_grad(), counting_products(state.denoiser, products):
            call.run(state.denoiser)
    return _average(quantized, products, call.planned)


def _average(layers: Iterable[QuantizedLayer], products: Mapping[str, int], planned: tuple[float, ...]) -> ProductBits:
    total = sum(products.values())
    weights = activations = 0.0
    for layer in layers:
        match layer.activations:
            case ActivationSchedule() as schedule:
                bits = sum(schedule.at(timestep).bits for timestep in planned) / len(planned)
            case dynamic:
                bits = dynamic.bits
        weights += products[layer.name] / total * layer.weight.qparams.bits
        activations += products[layer.name] / total * bits
    return ProductBits(weights, activations)
