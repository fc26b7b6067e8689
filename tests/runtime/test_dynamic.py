"""Layers whose ranges are found at run time: every token or picture by itself, alike in all runtimes."""

import pytest
import torch
from torch import Tensor, nn

from bitbrush.network.layers import QuantizedLayer
from bitbrush.numerics.limits import WeightRange
from bitbrush.numerics.weights import round_to_nearest, weight_qparams
from bitbrush.runtime.onednn.runtime import OneDnnRuntime
from bitbrush.runtime.onednn.weights import Memory
from bitbrush.runtime.reference import ReferenceRuntime
from bitbrush.runtime.tools import best_tools
from bitbrush.timeline.schedule import DynamicRanges
from tests.runtime.conftest import Alone, assert_same_sums

LAYERS = {
    "linear": nn.Linear(24, 16),
    "without bias": nn.Linear(24, 16, bias=False),
    "convolution": nn.Conv2d(24, 16, 3, padding=1),
    "strided": nn.Conv2d(24, 16, 3, stride=2, padding=1),
    "pointwise": nn.Conv2d(24, 16, 1),
}
SIZES = (1.0, 0.01, 300.0)


def layer(name: str, bits: int, weight_bits: int = 8) -> tuple[nn.Module, QuantizedLayer, Tensor]:
    """The input's rows are of very different sizes."""
    module, generator = LAYERS[name], torch.Generator().manual_seed(0)
    shape = (3, 5, 24) if isinstance(module, nn.Linear) else (3, 24, 6, 6)
    sizes = torch.tensor(SIZES).view(-1, *(1,) * (len(shape) - 1))
    weight = module.weight.detach()
    rounded = round_to_nearest(weight, weight_qparams(weight, weight_bits, WeightRange.MIN_MAX))
    bias = None if module.bias is None else module.bias.detach()
    x = torch.randn(shape, generator=generator) * sizes
    return module, QuantizedLayer("layer", rounded, bias, DynamicRanges(bits)), x


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_a_large_picture_beside_it_changes_nothing(name: str) -> None:
    module, quantized, x = layer(name, 8)
    network = Alone(module)
    ReferenceRuntime().lower(network, [quantized])
    bias = 0 if module.bias is None else module.bias.view(-1 if isinstance(module, nn.Linear) else (1, -1, 1, 1))
    together, expected = network(x, 1.0) - bias, module(x) - bias
    for index, size in enumerate(SIZES):
        alone = network(x[index, None], 1.0) - bias
        torch.testing.assert_close(together[index, None], alone, rtol=1e-4, atol=1e-5 * size)
        assert (alone - expected[index]).abs().max() < 0.05 * size  # a grid for all three would lose the smallest


@pytest.mark.parametrize(("name", "spoilt"), [("linear", 1), ("convolution", 36)])
@torch.no_grad()
def test_tokens_are_quantized_singly_and_pictures_as_a_whole(name: str, spoilt: int) -> None:
    """An outlier spoils its own token of a linear layer, and all of its picture in a convolution."""
    module, quantized, x = layer(name, 4)
    network = Alone(module)
    ReferenceRuntime().lower(network, [quantized])
    outlier = x.clone()
    outlier[(0, 2, 3) if name == "linear" else (0, 3, 2, 2)] = 1e4
    changed = (network(x, 1.0) != network(outlier, 1.0)).any(-1 if name == "linear" else 1)
    assert int(changed.sum()) == spoilt


@pytest.mark.parametrize("memory", list(Memory))
@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.usefixtures("exact_products")
@torch.no_grad()
def test_integers_compute_the_same(name: str, bits: int, memory: Memory) -> None:
    module, quantized, x = layer(name, bits, weight_bits=4)
    exact, ours = Alone(module), Alone(module)
    ReferenceRuntime().lower(exact, [quantized])
    (execution,) = OneDnnRuntime(best_tools(), torch.float32, memory).lower(ours, [quantized])
    assert execution.fallback is None
    for y, expected in zip(ours(x, 1.0), exact(x, 1.0), strict=True):
        assert_same_sums(y, expected, quantized.weight.w_q)
