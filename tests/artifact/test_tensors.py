"""Layers as tensors: exact there and back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bitbrush import Quantization
from bitbrush.artifact.tensors import layer_from_tensors, layer_tensors, other_tensors
from bitbrush.network.layers import QuantizedLayer
from bitbrush.numerics.affine import QParams
from bitbrush.numerics.weights import QuantizedWeight, WeightQParams
from bitbrush.timeline.schedule import ActivationSchedule

GRIDS = st.builds(QParams, st.floats(2.0**-60, 2.0**24, width=32), st.integers(0, 2**8 - 1), st.integers(8, 16))


@given(
    bits=st.integers(2, 8),
    shape=st.sampled_from([(3, 5), (2, 3, 3, 1), (1, 1)]),
    schedule=st.dictionaries(st.floats(0, 1000, width=32), GRIDS, min_size=1, max_size=5),
    has_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_there_and_back(
    bits: int, shape: tuple[int, ...], schedule: dict[float, QParams], has_bias: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    w_q, zero_point = (torch.randint(0, 1 << bits, s, generator=generator).byte() for s in (shape, shape[:1]))
    weight = QuantizedWeight(w_q, WeightQParams(torch.rand(shape[0], generator=generator), zero_point, bits))
    bias = torch.randn(shape[0], generator=generator) if has_bias else None
    layer = QuantizedLayer("a.b", weight, bias, ActivationSchedule.of(schedule))
    tensors = layer_tensors(layer)
    assert all(key.startswith("a.b.") and tensor.is_contiguous() for key, tensor in tensors.items())
    assert tensors["a.b.weight"].numel() == -(-w_q.numel() * bits // 8)
    back = layer_from_tensors("a.b", shape, bits, tensors)
    assert back.activations == layer.activations
    assert torch.equal(back.weight.w_q, w_q)
    assert torch.equal(back.weight.dequantize(), weight.dequantize())
    assert (back.bias is None) if bias is None else torch.equal(back.bias, bias)


def test_a_tensor_that_is_missing_is_named(quantization: Quantization) -> None:
    layer = quantization.outcome.layers[0]
    tensors = layer_tensors(layer)
    shape, bits = tuple(layer.weight.w_q.shape), layer.weight.qparams.bits
    for key in tensors.keys() - {f"{layer.name}.bias"}:
        rest = {other: tensor for other, tensor in tensors.items() if other != key}
        with pytest.raises(KeyError, match=key):
            layer_from_tensors(layer.name, shape, bits, rest)


def test_the_rest_is_all_that_is_not_quantized() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))
    rest = other_tensors(network, {"0": None})
    assert rest.keys() == network.state_dict().keys() - {"0.weight", "0.bias"}
    assert all(torch.equal(tensor, network.state_dict()[key]) for key, tensor in rest.items())
