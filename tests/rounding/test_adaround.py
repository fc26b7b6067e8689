"""AdaRound by blocks: better than nearest, on its grid, every weight rounded to a neighbour."""

import copy

import pytest
import torch
from torch import Generator, nn

from bitbrush.numerics.limits import WeightRange
from bitbrush.numerics.weights import QuantizedWeight
from bitbrush.rounding import adaround as module
from bitbrush.rounding.adaround import FIRST_BETA, LAST_BETA, _beta, adaround, round_alone
from bitbrush.rounding.blocks import BlockCall, BlockInputs
from tests.rounding.test_reconstruction import block_and_inputs, loss, nearest


def learn(block: nn.Module, start: dict[str, object], inputs: BlockInputs) -> dict[str, QuantizedWeight]:
    targets = block(inputs.args[0][:]).detach()
    return adaround(copy.deepcopy(block), start, inputs, targets, Generator().manual_seed(5))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _in_few_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a higher rate, so that a test takes seconds."""
    monkeypatch.setattr(module, "ITERATIONS", 400)
    monkeypatch.setattr(module, "RATE", 2e-2)


@pytest.mark.parametrize("bits", [3, 4])
def test_better_than_nearest_on_rows_never_seen(bits: int) -> None:
    for seed in range(2):
        block, inputs = block_and_inputs(seed, rows=400)
        start = nearest(block, bits)
        fresh = inputs.args[0][200:]
        learned = learn(block, start, BlockInputs.of([BlockCall("", (inputs.args[0][:200],), {})]))
        before = {name: layer.weight for name, layer in start.items()}
        assert loss(block, learned, fresh) < 0.9 * loss(block, before, fresh)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_weight_goes_to_a_neighbour_on_its_grid(bits: int) -> None:
    block, inputs = block_and_inputs(0, rows=64)
    start = nearest(block, bits)
    for name, weight in learn(block, start, inputs).items():
        w_fp, qparams = start[name].w_fp, start[name].weight.qparams
        assert weight.qparams is qparams
        assert int(weight.w_q.max()) <= qparams.qmax
        scale, zero_point = qparams.per_channel(w_fp)
        low, high = -zero_point * scale, (qparams.qmax - zero_point) * scale
        inside = (w_fp > low) & (w_fp < high)
        assert bool(((weight.dequantize() - w_fp).abs() <= 1.001 * scale)[inside].all())
        assert not torch.equal(weight.w_q, start[name].weight.w_q) or bits == 8


def test_a_layer_alone_is_learned_as_well() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(12, 8), torch.randn(200, 12) @ torch.randn(12, 12)
    start = round_alone(layer, 3, WeightRange.MSE, None, None, Generator())
    inputs = BlockInputs.of([BlockCall("", (x,), {})])
    with torch.no_grad():
        learned = adaround(copy.deepcopy(layer), {"": start}, inputs, layer(x), Generator().manual_seed(0))[""]
        errors = [(x @ (one.dequantize() - layer.weight).T).square().mean() for one in (learned, start.weight)]
    assert errors[0] < errors[1]


def test_beta_falls_after_the_warm_up() -> None:
    betas = [_beta(iteration) for iteration in range(module.ITERATIONS)]
    assert betas[:80] == [None] * 80
    assert betas[80] == FIRST_BETA
    falling = [beta for beta in betas if beta is not None]
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] == pytest.approx(LAST_BETA, abs=0.1)
