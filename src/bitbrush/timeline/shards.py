"""Division of prompts among processes."""

from collections.abc import Sequence
from dataclasses import dataclass

from bitbrush.session.ranks import Ranks
from bitbrush.timeline.trajectory import PromptBatch


@dataclass(frozen=True)
class BatchShard:
    """Part of one prompt batch that a process works on.

    ``batch`` contains the prompts from ``begin`` on of the ``index``-th of all ``batches``. That batch has ``of``
    prompts.
    """

    batch: PromptBatch
    index: int
    batches: int
    begin: int
    of: int


def own_shards(batches: Sequence[PromptBatch], ranks: Ranks) -> tuple[BatchShard, ...]:
    """Returns the shards of this process, consecutive prompts; none if there are fewer prompts than processes.

    With at least as many batches as processes, shards are whole batches. Each is then computed as by a single process,
    bit for bit. Otherwise all processes get equally many prompts, give or take one, from one or more batches.
    """
    number = len(batches)
    if number >= ranks.world:
        return tuple(BatchShard(batches[i], i, number, 0, len(batches[i].prompts)) for i in ranks.cut(number))
    span = ranks.cut(sum(len(batch.prompts) for batch in batches))
    pieces, first = [], 0
    for index, batch in enumerate(batches):
        count = len(batch.prompts)
        begin, end = max(span.start - first, 0), min(span.stop - first, count)
        if begin < end:
            pieces.append(BatchShard(batch[begin:end], index, number, begin, count))
        first += count
    return tuple(pieces)
