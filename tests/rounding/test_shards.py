"""Rows in several processes: the same draws, and sums that come to what a single process has."""

import copy
import itertools

import pytest
import torch
from torch import Generator, Tensor

from bitbrush.numerics.limits import WeightRange
from bitbrush.numerics.weights import round_to_nearest
from bitbrush.rounding.blocks import BlockCall, BlockInputs
from bitbrush.rounding.compensation import Compensated, round_with_compensation
from bitbrush.rounding.learned import learn_rounding
from bitbrush.rounding.reconstruction import reconstruct
from bitbrush.rounding.samples import sample_shards
from bitbrush.rounding.shards import SampleShard, Shard, Shards
from bitbrush.session.ranks import Ranks
from bitbrush.session.session import Session
from bitbrush.timeline.trajectory import DenoiserCall, prompt_batches
from tests.rounding.test_compensation import LAYERS, layer_and_inputs
from tests.rounding.test_learned import FAMILY, Network, specs_of
from tests.rounding.test_reconstruction import block_and_inputs, nearest
from tests.thread_ranks import in_threads

PARTS = {
    "halves": [range(8), range(8, 16), range(0)],
    "one by one": [range(index, 16, 3) for index in range(3)],
    "all in one": [range(0), range(16), range(0)],
}


@pytest.fixture(params=PARTS)
def parts(request: pytest.FixtureRequest) -> list[range]:
    """Which sixteenths of the rows each of three processes has; some have none."""
    return PARTS[request.param]


def rows_of(own: range, rows: int) -> Tensor:
    size = rows // 16
    return torch.cat([torch.zeros(0, dtype=torch.long), *(torch.arange(i * size, (i + 1) * size) for i in own)])


def shard_of(own: range, rows: int, ranks: Ranks) -> Shard:
    return Shard.of([SampleShard(i) for i in own], [rows // 16] * len(own), ranks)


def small_integers(x: Tensor) -> Tensor:
    """From -2 to 2, so that float32 sums of products are exact in any order."""
    return (x / x.std()).round().clamp(-2, 2)


@pytest.mark.parametrize("kind", LAYERS)
def test_compensation_of_shared_rows(kind: str, parts: list[range]) -> None:
    """Equal to the last bit: the moments of integers are the same however the rows are shared.

    Weights are eighths up to 3/8. The largest sum has some 2,400 positions of ``|drift| <= 4`` times ``|w| <= 3/8``
    over 72 inputs, times ``|x| <= 2``: below 2^24 eighths, which float32 represents exactly.
    """
    layer, target_x, x = layer_and_inputs(kind, 0, drift=0.1)
    layer.weight.data.mul_(8).round_().clamp_(-3, 3).div_(8)
    target_x, x = small_integers(target_x), small_integers(x)

    def rounded(ranks: Ranks) -> Compensated:
        own = rows_of(parts[ranks.rank], len(x))
        given = (target_x[own], x[own]) if len(own) else (None, None)
        shard = shard_of(parts[ranks.rank], len(x), ranks)
        return round_with_compensation(layer, 4, WeightRange.MSE, *given, Generator().manual_seed(0), shard)

    whole = round_with_compensation(layer, 4, WeightRange.MSE, target_x, x, Generator().manual_seed(0))
    assert not torch.equal(whole.weight.w_q, round_to_nearest(layer.weight.detach(), whole.weight.qparams).w_q)
    for shared in in_threads(len(parts), rounded):
        assert torch.equal(shared.weight.w_q, whole.weight.w_q)
        assert torch.equal(shared.weight.qparams.scale, whole.weight.qparams.scale)
        assert torch.equal(shared.w_fp, whole.w_fp)
        assert torch.equal(shared.bias, whole.bias)


def test_reconstruction_of_shared_rows(parts: list[range]) -> None:
    block, inputs = block_and_inputs(0, rows=64)
    x, start = inputs.args[0][:], nearest(block, 3)
    targets = block(x).detach()

    def learned(ranks: Ranks) -> dict[str, Tensor]:
        own = rows_of(parts[ranks.rank], len(x))
        given = (BlockInputs.of([BlockCall("", (x[own],), {})]), targets[own]) if len(own) else (None, None)
        shard = shard_of(parts[ranks.rank], len(x), ranks)
        made = reconstruct(copy.deepcopy(block), start, *given, Generator().manual_seed(5), shard)
        return {name: weight.w_q for name, weight in made.items()}

    whole = reconstruct(copy.deepcopy(block), start, inputs, targets, Generator().manual_seed(5))
    first, *others = in_threads(len(parts), learned)
    assert any(not torch.equal(weight.w_q, start[name].weight.w_q) for name, weight in whole.items())
    for name, weight in whole.items():
        assert all(torch.equal(first[name], other[name]) for other in others)
        assert (first[name] != weight.w_q).float().mean() < 0.01  # the sign of a gradient next to zero may turn


@pytest.mark.parametrize(("prompts", "world"), [(16, 2), (16, 3), (16, 20), (3, 2), (1, 2)])
def test_samples_are_numbered_as_in_one_process(prompts: int, world: int) -> None:
    """Rows named by call, condition and prompt come in the order of a single process, however they are shared."""
    batches = prompt_batches([f"cat {i}" for i in range(prompts)], 0, 16)
    calls, conditions = 20, 2

    def names(ranks: Ranks) -> tuple[list[str], Tensor]:
        places = sample_shards(batches, 10**3, ranks).places or ()
        own = list(itertools.takewhile(lambda place: place.order < calls, places))
        named = [
            f"{place.order}/{condition}/{place.begin + prompt}"
            for place in own
            for condition in range(conditions)
            for prompt in range(place.count)
        ]
        return named, Shard.of(own, [conditions * place.count for place in own], ranks).local

    ((single, _),) = in_threads(1, names)
    shared = in_threads(world, names)
    assert len(single) == sum(len(named) for named, _ in shared)
    for row, name in enumerate(single):
        assert [named[local[row]] for named, local in shared if local[row] >= 0] == [name]


class Skipping(Network):
    def forward(self, x: Tensor, skip: bool = False) -> Tensor:
        x = self.first(x)
        return self.last(x if skip else self.second(x))


def test_a_block_that_no_call_of_a_process_comes_to() -> None:
    """As where guidance skips layers in some calls: the others learn it, and tell."""
    x = torch.randn(160, 3, generator=Generator().manual_seed(0))
    calls = [DenoiserCall((x[:80],), {}, 0.0, ()), DenoiserCall((x[80:],), {"skip": True}, 0.0, ())]
    fresh = Skipping()

    def learned(ranks: Ranks) -> dict[str, Tensor]:
        network, own = copy.deepcopy(fresh), list(ranks.cut(len(calls)))
        shards = Shards(ranks, [SampleShard(index) for index in own])
        given = (
            specs_of(network, FAMILY, "*.spare"),
            WeightRange.MSE,
            [calls[index] for index in own],
            Session(ranks=ranks),
        )
        return {
            name: layer.weight.w_q for name, layer in learn_rounding(network, FAMILY, *given, shards=shards).items()
        }

    (single,), (first, second) = in_threads(1, learned), in_threads(2, learned)
    assert single.keys() == first.keys() == second.keys() >= {"second.a", "second.b"}
    for name, weight in single.items():
        assert torch.equal(first[name], second[name])
        assert torch.equal(first[name], weight), name
