"""Rounding with compensation: the output error that it is meant to make small, and what it keeps to."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from bitbrush.network.layers import set_weight
from bitbrush.numerics.limits import WeightRange
from bitbrush.numerics.weights import round_to_nearest, weight_qparams
from bitbrush.rounding import compensation
from bitbrush.rounding.compensation import Compensated, round_with_compensation
from bitbrush.session import offload as offloading
from bitbrush.session.offload import Offload, is_offloaded

Layer = nn.Conv2d | nn.Linear
LAYERS = {
    "linear": lambda: nn.Linear(24, 10),
    "conv": lambda: nn.Conv2d(8, 10, 3, padding=1),
    "strided": lambda: nn.Conv2d(8, 10, 3, stride=2, padding=(0, 1)),
    "dilated": lambda: nn.Conv2d(8, 10, (3, 1), dilation=2),
    "grouped": lambda: nn.Conv2d(8, 12, 3, padding=1, groups=4),
    "pointwise": lambda: nn.Conv2d(8, 10, 1),
}


def layer_and_inputs(kind: str, seed: int, *, drift: float) -> tuple[Layer, Tensor, Tensor]:
    """A random layer, inputs correlated by a random mixing of channels, the same drifted: bent, shifted and noisy."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer: Layer = LAYERS[kind]()
        channels = 24 if kind == "linear" else 8
        mixing = torch.randn(channels, channels) * torch.linspace(2, 0.1, channels)
        x = torch.randn(96, 9, channels) if kind == "linear" else torch.randn(48, 7, 7, channels)
        target = x @ mixing.T + torch.randn(channels)
        bent = target @ torch.randn(channels, channels) / channels**0.5 + torch.randn(channels)
        drifted = target + drift * (bent + 0.3 * torch.randn_like(target))
    if kind != "linear":
        target, drifted = target.movedim(-1, 1), drifted.movedim(-1, 1)
    return layer, target, drifted


def output_error(layer: Layer, weight: Tensor, bias: Tensor | None, target_x: Tensor, x: Tensor) -> float:
    rounded = copy.deepcopy(layer)
    set_weight(rounded, weight, bias)
    with torch.no_grad():
        return float((rounded(x) - layer(target_x)).square().mean())


def compensated(layer: Layer, bits: int, target_x: Tensor, x: Tensor) -> Compensated:
    return round_with_compensation(layer, bits, WeightRange.MSE, target_x, x, Generator().manual_seed(0))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("bits", "drift"), [(3, 0.0), (4, 0.0), (4, 0.2)])
def test_beats_nearest_on_the_output(kind: str, bits: int, drift: float) -> None:
    errors = []
    for seed in range(4):
        layer, target_x, x = layer_and_inputs(kind, seed, drift=drift)
        nearest = round_to_nearest(layer.weight.detach(), weight_qparams(layer.weight, bits, WeightRange.MSE))
        ours = compensated(layer, bits, target_x, x)
        rounded = [(ours.weight.dequantize(), ours.bias), (nearest.dequantize(), layer.bias)]
        errors.append([output_error(layer, weight, bias, target_x, x) for weight, bias in rounded])
        assert errors[-1][0] < errors[-1][1]
    ours_mean, nearest_mean = torch.tensor(errors).mean(0).tolist()
    assert ours_mean < 0.9 * nearest_mean


@pytest.mark.parametrize("kind", LAYERS)
def test_makes_up_for_drift(kind: str) -> None:
    """With 8 bits next to nothing is lost by rounding: what remains is what the drift did."""
    layer, target_x, x = layer_and_inputs(kind, 0, drift=0.4)
    ours = compensated(layer, 8, target_x, x)
    error = output_error(layer, ours.weight.dequantize(), ours.bias, target_x, x)
    assert error < 0.9 * output_error(layer, layer.weight.detach(), layer.bias, target_x, x)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_mean_of_the_output_is_kept(kind: str) -> None:
    layer, target_x, x = layer_and_inputs(kind, 1, drift=0.2)
    ours = compensated(layer, 3, target_x, x)
    rounded = copy.deepcopy(layer)
    set_weight(rounded, ours.weight.dequantize(), ours.bias)
    channel = -1 if kind == "linear" else 1
    means = [y.movedim(channel, 0).flatten(1).mean(1) for y in (rounded(x), layer(target_x))]
    torch.testing.assert_close(*means, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", LAYERS)
def test_without_drift_8_bits_shift_no_bias(kind: str) -> None:
    layer, x, _ = layer_and_inputs(kind, 2, drift=0.0)
    ours = compensated(layer, 8, x, x)
    spread = layer(x).detach().std()
    assert ours.bias is not None
    assert (ours.bias - layer.bias).abs().max() < 0.01 * spread
    assert (ours.weight.dequantize() - layer.weight).abs().max() < 0.1 * layer.weight.detach().abs().max()


@given(seed=st.integers(0, 2**16), bits=st.integers(2, 8), kind=st.sampled_from(sorted(LAYERS)))
def test_integers_are_those_of_the_wanted_values_and_in_range(seed: int, bits: int, kind: str) -> None:
    layer, target_x, x = layer_and_inputs(kind, seed, drift=0.3)
    ours = compensated(layer, bits, target_x, x)
    qparams = ours.weight.qparams
    assert ours.weight.w_q.dtype == torch.uint8
    assert ours.weight.w_q.shape == ours.w_fp.shape == layer.weight.shape
    assert qparams.scale.shape == qparams.zero_point.shape == (layer.weight.shape[0],)
    assert qparams.bits == bits
    assert int(ours.weight.w_q.max()) <= 2**bits - 1
    assert torch.equal(ours.weight.w_q, round_to_nearest(ours.w_fp, qparams).w_q)


@pytest.mark.parametrize("kind", LAYERS)
def test_repeats_bit_for_bit_and_leaves_the_layer(kind: str) -> None:
    layer, target_x, x = layer_and_inputs(kind, 3, drift=0.1)
    before, inputs = copy.deepcopy(layer.state_dict()), (target_x.clone(), x.clone())
    first, second = (compensated(layer, 4, target_x, x) for _ in range(2))
    assert torch.equal(first.weight.w_q, second.weight.w_q)
    assert torch.equal(first.w_fp, second.w_fp)
    assert torch.equal(first.bias, second.bias)
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    assert all(map(torch.equal, (target_x, x), inputs))


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind != "linear"])
def test_columns_are_those_of_an_unfolded_input(kind: str) -> None:
    layer, x, _ = layer_and_inputs(kind, 4, drift=0.0)
    assert isinstance(layer, nn.Conv2d)
    unfolded = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT.flatten(0, 1)
    positions = torch.randperm(len(unfolded), generator=Generator().manual_seed(5))[: len(unfolded) // 2]
    assert torch.equal(compensation._columns(layer, x, None), unfolded)
    assert torch.equal(compensation._columns(layer, x, positions), unfolded[positions])


def test_columns_rounded_in_pieces_are_those_rounded_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(160, 6)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 160, generator=generator) @ torch.randn(160, 160, generator=generator)
    whole_moments = compensated(layer, 3, x, x)
    monkeypatch.setattr(compensation, "ROWS_AT_ONCE", 48)
    pieces = compensated(layer, 3, x, x)
    assert (pieces.weight.w_q == whole_moments.weight.w_q).float().mean() > 0.95
    monkeypatch.setattr(compensation, "COLUMNS_PER_BLOCK", 160)
    whole = compensated(layer, 3, x, x)
    # A sum in another order may move a value over a rounding boundary, seldom more.
    assert (pieces.weight.w_q == whole.weight.w_q).float().mean() > 0.95


def test_errors_are_spread_as_optimal_brain_quantization_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """One column after another, each error over the rest by the inverse Gram matrix of the rest, inverted anew."""
    monkeypatch.setattr(compensation, "ROWS_AT_ONCE", 5)
    generator = Generator().manual_seed(0)
    inputs = torch.randn(300, 24, generator=generator) @ torch.randn(24, 24, generator=generator)
    hessian = (inputs.T @ inputs / 300).double()
    weight = torch.randn(6, 24, generator=generator).double()
    qparams = weight_qparams(weight.float(), 4, WeightRange.MSE)
    scale, zero_point = qparams.scale.double(), qparams.zero_point.double()
    order = torch.argsort(hessian.diagonal(), descending=True)
    damped = hessian[order][:, order] + compensation.DAMPING * hessian.diagonal().mean() * torch.eye(24)
    rest, expected = weight[:, order].clone(), torch.empty(6, 24)
    for i in range(24):
        expected[:, order[i]] = rest[:, i].float()
        x_q = ((rest[:, i] / scale).round() + zero_point).clamp(0, qparams.qmax)
        inverse = torch.linalg.inv(damped[i:, i:])
        rest[:, i:] -= torch.outer(rest[:, i] - (x_q - zero_point) * scale, inverse[0] / inverse[0, 0])
    _, w_fp = compensation._round_columns(weight.float(), qparams, hessian.float())
    torch.testing.assert_close(w_fp, expected, rtol=0, atol=1e-4)


def test_a_large_gram_matrix_waits_on_the_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    layer, target_x, x = layer_and_inputs("grouped", 0, drift=0.2)
    materialized = compensated(layer, 4, target_x, x)
    monkeypatch.setattr(compensation, "OFFLOAD_BYTES", 1)
    monkeypatch.setattr(offloading, "SMALLEST", 1)
    put = []
    monkeypatch.setattr(Offload, "put", lambda self, hessian: put.append(hessian) or self._put([hessian]))
    generator = Generator().manual_seed(0)
    waiting = round_with_compensation(layer, 4, WeightRange.MSE, target_x, x, generator, offload=Offload(tmp_path))
    assert len(put) == 4
    assert all(is_offloaded(hessian) for hessian in put)
    assert torch.equal(waiting.weight.w_q, materialized.weight.w_q)
    assert torch.equal(waiting.w_fp, materialized.w_fp)


def test_no_bias_stays_none() -> None:
    layer = nn.Linear(4, 3, bias=False)
    assert compensated(layer, 4, torch.randn(8, 4), torch.randn(8, 4)).bias is None


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_inputs_that_never_vary_are_no_obstacle(value: float) -> None:
    layer = nn.Conv2d(3, 4, 3)
    x = torch.full((2, 3, 5, 5), value)
    ours = compensated(layer, 4, x, x)
    assert ours.w_fp.isfinite().all()
    assert output_error(layer, ours.weight.dequantize(), ours.bias, x, x) < 1e-9


def test_a_part_of_many_samples_suffices() -> None:
    """The Gram matrix is taken from some thousands of positions: nearly as good as from all."""
    layer = nn.Conv2d(4, 8, 1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, 32, 32, generator=generator) * torch.tensor([3.0, 2, 1, 0.1]).view(-1, 1, 1)
    part = compensated(layer, 4, x, x)
    whole = compensated(layer, 4, x[:4], x[:4])  # as many positions as are taken
    errors = [output_error(layer, c.weight.dequantize(), c.bias, x, x) for c in (part, whole)]
    assert errors[0] < 1.2 * errors[1]
