"""Block reconstruction: never worse than its start, better where there is something to learn."""

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from bitbrush.numerics.limits import WeightRange
from bitbrush.numerics.weights import QuantizedWeight, round_to_nearest, weight_qparams
from bitbrush.rounding.blocks import BlockCall, BlockInputs
from bitbrush.rounding.compensation import Compensated
from bitbrush.rounding.reconstruction import HELD_OUT, reconstruct


def block_and_inputs(seed: int, *, rows: int) -> tuple[nn.Module, BlockInputs]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        block = nn.Sequential(nn.Linear(12, 24), nn.SiLU(), nn.Linear(24, 12))
        x = torch.randn(rows, 5, 12) @ torch.randn(12, 12)
    return block, BlockInputs.of([BlockCall("", (x,), {})])


def nearest(block: nn.Module, bits: int) -> dict[str, Compensated]:
    start = {}
    for name, layer in block.named_modules():
        if isinstance(layer, nn.Linear):
            weight = layer.weight.detach()
            rounded = round_to_nearest(weight, weight_qparams(weight, bits, WeightRange.MSE))
            start[name] = Compensated(rounded, weight.clone(), layer.bias.detach())
    return start


def loss(block: nn.Module, weights: Mapping[str, QuantizedWeight], x: Tensor) -> float:
    named = {f"{name}.weight": weight.dequantize() for name, weight in weights.items()}
    with torch.no_grad():
        return float((functional_call(block, named, (x,)) - block(x)).square().mean())


def learn(block: nn.Module, start: Mapping[str, Compensated], inputs: BlockInputs) -> dict[str, QuantizedWeight]:
    targets = block(inputs.args[0][:]).detach()
    return reconstruct(copy.deepcopy(block), start, inputs, targets, Generator().manual_seed(5))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("rows", [4, 30, 300])
def test_never_worse_than_the_start_on_held_out_rows(bits: int, rows: int) -> None:
    held_out = torch.randperm(rows, generator=Generator().manual_seed(5))[: min(HELD_OUT, rows // 4)]
    for seed in range(2):
        block, inputs = block_and_inputs(seed, rows=rows)
        start = nearest(block, bits)
        x = inputs.args[0][held_out]
        before = {name: layer.weight for name, layer in start.items()}
        assert loss(block, learn(block, start, inputs), x) <= loss(block, before, x)


@pytest.mark.parametrize("bits", [3, 4])
def test_clearly_better_on_rows_never_seen(bits: int) -> None:
    for seed in range(2):
        block, inputs = block_and_inputs(seed, rows=400)
        start = nearest(block, bits)
        fresh = inputs.args[0][200:]
        learned = learn(block, start, BlockInputs.of([BlockCall("", (inputs.args[0][:200],), {})]))
        before = {name: layer.weight for name, layer in start.items()}
        assert loss(block, learned, fresh) < 0.9 * loss(block, before, fresh)


@pytest.mark.parametrize("bits", range(2, 9))
def test_integers_stay_on_their_grid(bits: int) -> None:
    block, inputs = block_and_inputs(0, rows=40)
    start = nearest(block, bits)
    for name, weight in learn(block, start, inputs).items():
        assert weight.qparams is start[name].weight.qparams
        assert weight.w_q.dtype == torch.uint8
        assert weight.w_q.shape == start[name].weight.w_q.shape
        assert int(weight.w_q.max()) <= 2**bits - 1


def test_repeats_bit_for_bit_and_changes_nothing_given() -> None:
    block, inputs = block_and_inputs(1, rows=60)
    start = nearest(block, 3)
    w_fp = {name: layer.w_fp.clone() for name, layer in start.items()}
    integers = {name: layer.weight.w_q.clone() for name, layer in start.items()}
    first, second = (learn(block, start, inputs) for _ in range(2))
    assert any(not torch.equal(first[name].w_q, integers[name]) for name in first)
    for name, layer in start.items():
        assert torch.equal(first[name].w_q, second[name].w_q)
        assert torch.equal(layer.w_fp, w_fp[name])
        assert torch.equal(layer.weight.w_q, integers[name])


@pytest.mark.parametrize("rows", [1, 3])
def test_too_few_rows_to_hold_any_out_leave_the_start(rows: int) -> None:
    block, inputs = block_and_inputs(0, rows=rows)
    start = nearest(block, 3)
    learned = learn(block, start, inputs)
    assert all(learned[name] is start[name].weight for name in start)
