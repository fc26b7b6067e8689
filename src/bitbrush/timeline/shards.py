"""Which prompts each of several processes works on."""

from collections.abc import Sequence
from dataclasses import dataclass

from bitbrush.session.ranks import Ranks
from bitbrush.timeline.trajectory import PromptBatch


@dataclass(frozen=True)
class BatchShard:
    """``batch``: the prompts from ``begin`` on of the ``index``-th of all ``batches``, which has ``of`` prompts."""

    batch: PromptBatch
    index: int
    batches: int
    begin: int
    of: int


def own_shards(batches: Sequence[PromptBatch], ranks: Ranks) -> tuple[BatchShard, ...]:
    """This process's consecutive share; none where there are fewer prompts than processes.

    Whole batches where there are as many as processes, so that each is computed as a single process would, bit for
    bit; else as many prompts for each process, give or take one, of however many batches.
    """
    number = len(batches)
    if number >= ranks.world:
        return tuple(BatchShard(batches[i], i, number, 0, len(batches[i].prompts)) for i in ranks.cut(number))
    own = ranks.cut(sum(len(batch.prompts) for batch in batches))
    pieces, first = [], 0
    for index, batch in enumerate(batches):
        count = len(batch.prompts)
        begin, end = max(own.start - first, 0), min(own.stop - first, count)
        if begin < end:
            pieces.append(BatchShard(batch[begin:end], index, number, begin, count))
        first += count
    return tuple(pieces)
