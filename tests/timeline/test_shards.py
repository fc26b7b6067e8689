"""Which prompts each process works on: all of them, each once, in order."""

import pytest

from bitbrush.session.ranks import Ranks
from bitbrush.timeline.shards import own_shards
from bitbrush.timeline.trajectory import join, prompt_batches

PROMPTS = [f"cat {index}" for index in range(16)]


@pytest.mark.parametrize("batch_size", [1, 3, 5, 16])
@pytest.mark.parametrize("world", [1, 2, 3, 5, 16, 20])
def test_every_prompt_once_and_in_order(batch_size: int, world: int) -> None:
    batches = prompt_batches(PROMPTS, 0, batch_size)
    shares = [own_shards(batches, Ranks(rank, world)) for rank in range(world)]
    pieces = [piece for share in shares for piece in share]
    assert join([piece.batch for piece in pieces]) == join(batches)
    for piece in pieces:
        whole = batches[piece.index]
        assert piece.batch == whole[piece.begin : piece.begin + len(piece.batch.prompts)]
        assert (piece.of, piece.batches) == (len(whole.prompts), len(batches))


@pytest.mark.parametrize(("batch_size", "world"), [(4, 3), (4, 4), (1, 5)])
def test_batches_stay_whole_where_there_are_enough(batch_size: int, world: int) -> None:
    batches = prompt_batches(PROMPTS, 0, batch_size)
    shares = [own_shards(batches, Ranks(rank, world)) for rank in range(world)]
    assert [piece.batch for share in shares for piece in share] == batches
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("world", [2, 3, 5])
def test_a_batch_is_split_evenly(world: int) -> None:
    counts = [
        len(own_shards(prompt_batches(PROMPTS, 0, 16), Ranks(rank, world))[0].batch.prompts) for rank in range(world)
    ]
    assert max(counts) - min(counts) <= 1


def test_the_first_process_always_has_a_share() -> None:
    assert own_shards(prompt_batches(PROMPTS[:1], 0, 16), Ranks(0, 4))
    assert not own_shards(prompt_batches(PROMPTS[:1], 0, 16), Ranks(3, 4))
