"""Weights in a narrow form compute what they do in float32, and nothing else of the network changes."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn
from torch.func import functional_call

from bitbrush.network.layers import set_weight
from bitbrush.network.lazy_weights import (
    LazyWeight,
    count_lazy_weights,
    in_float32,
    lazy_layers,
    materialized,
    offload_weights,
    set_lazy_weight,
    set_quantized_weight,
    shallow_copy,
    state_readers,
    weight_shape,
)
from bitbrush.numerics.limits import WeightRange
from bitbrush.numerics.weights import round_to_nearest, weight_qparams
from bitbrush.session import offload as offloading
from bitbrush.session.offload import Offload


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.GroupNorm(2, 4),
            nn.Flatten(),
            nn.Linear(64, 5),
            nn.Linear(5, 2, bias=False),
        )


X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_what_it_does_in_float32(dtype: torch.dtype) -> None:
    narrow = network().to(dtype)
    wide = in_float32(narrow)
    assert torch.equal(wide(X), copy.deepcopy(narrow).float()(X))
    assert {one.dtype for one in wide.parameters()} == {torch.float32}
    assert {one.dtype for one in narrow.parameters()} == {dtype}
    assert list(lazy_layers(wide)) == ["0", "3", "4"]
    assert count_lazy_weights(wide) == 3 * 4 * 9 + 64 * 5 + 5 * 2
    assert not lazy_layers(narrow)


def test_what_is_float32_stays_itself() -> None:
    plain = network()
    assert in_float32(plain) is plain
    assert materialized(plain) is plain


def test_the_state_is_all_there_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offloading, "SMALLEST", 1)
    narrow = network().half()
    expected = copy.deepcopy(narrow).float().state_dict()
    offload_weights(narrow, Offload(tmp_path))
    assert {key: read().dtype for key, read in state_readers(narrow).items()} == dict.fromkeys(expected, torch.float32)
    for state in ({key: read() for key, read in state_readers(narrow).items()}, materialized(narrow).state_dict()):
        assert state.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in state.items())
    assert list(tmp_path.iterdir()) == []  # files without a name
    assert narrow[3].weight.data_ptr() != narrow[3].weight.data_ptr()  # widened for each use


def test_integers_take_the_place_of_a_weight() -> None:
    plain = network()
    other = shallow_copy(plain)
    weight = round_to_nearest(plain[3].weight.detach(), weight_qparams(plain[3].weight, 4, WeightRange.MIN_MAX))
    set_quantized_weight(other[3], weight, torch.ones(5))
    expected = copy.deepcopy(plain)
    set_weight(expected[3], weight.dequantize(), torch.ones(5))
    assert torch.equal(other(X), expected(X))
    assert weight_shape(other[3]) == tuple(plain[3].weight.shape)
    assert weight_shape(other[0]) == tuple(plain[0].weight.shape)
    set_weight(other[3], torch.zeros(5, 64), None)
    assert torch.equal(other[3](torch.ones(1, 64)), torch.ones(1, 5))


def test_twins_share_tensors_and_not_what_they_are_given() -> None:
    plain = network()
    other = shallow_copy(plain)
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(plain.parameters(), other.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in other.parameters())
    assert all(parameter.requires_grad for parameter in plain.parameters())
    before = copy.deepcopy(plain.state_dict())
    set_weight(other[0], torch.zeros(4, 3, 3, 3), torch.zeros(4))
    set_lazy_weight(other[3], LazyWeight(lambda: torch.zeros(5, 64)))
    assert all(torch.equal(tensor, before[key]) for key, tensor in plain.state_dict().items())
    assert shallow_copy(other)[3].lazy_weight is other[3].lazy_weight


def test_gradients_go_to_weights_given_for_a_call() -> None:
    linear = nn.Linear(3, 2)
    set_lazy_weight(linear, LazyWeight(lambda: torch.zeros(2, 3)))
    weight = torch.ones(2, 3, requires_grad=True)
    x = torch.randn(4, 3)
    (gradient,) = torch.autograd.grad(functional_call(linear, {"weight": weight}, (x,)).sum(), weight)
    assert torch.allclose(gradient, x.sum(0).expand(2, 3))
    assert torch.equal(linear.weight, torch.zeros(2, 3))


def test_a_denoiser_in_half_precision_is_called_as_one_in_float32(tiny_pipe: StableDiffusionPipeline) -> None:
    narrow = in_float32(tiny_pipe.unet.to(torch.bfloat16))
    assert narrow.dtype == torch.float32
    given: tuple[Tensor, int, Tensor] = (torch.randn(1, 4, 8, 8), 5, torch.randn(1, 5, 16))
    with torch.no_grad():
        assert torch.equal(narrow(*given)[0], copy.deepcopy(tiny_pipe.unet).float()(*given)[0])
