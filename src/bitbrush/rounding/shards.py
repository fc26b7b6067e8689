"""Distribution of a block's input rows over processes, with the row numbers of a single process.

All processes thus draw the same rows, and the sum of their local results equals that of a single process.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitbrush.session.ranks import ALONE, Ranks

ROWS_PER_CALL = 1 << 32
"""Upper bound on the rows of a call; it separates the row numbers of different calls."""


@dataclass(frozen=True)
class SampleShard:
    """Position of a sample among those of all processes.

    Args:
        order: Number of the call; the numbers may have gaps.
        begin: First prompt of the shard within its batch.
        count: Prompts of the shard.
        of: Prompts of the batch.
    """

    order: int
    begin: int = 0
    count: int = 1
    of: int = 1

    def keys(self, rows: int) -> Tensor:
        """Returns a sort key for each row of a block call, (rows,), int64, in the row order of the whole batch.

        Guidance repeats all prompts of the batch in sequence, once for each condition.
        """
        row = torch.arange(rows)
        return self.order * ROWS_PER_CALL + row // self.count * self.of + self.begin + row % self.count


@dataclass(frozen=True)
class Shard:
    """Distribution of rows over processes.

    Args:
        local: Index of each row in this process, (rows of all processes,), int64; -1 for rows of other processes.
        ranks: Processes.
    """

    local: Tensor
    ranks: Ranks = ALONE

    @classmethod
    def of(cls, places: Sequence[SampleShard], rows: Sequence[int], ranks: Ranks) -> "Shard":
        """Creates a shard from the positions of this process's calls and their row counts; a process may have none."""
        keys, span = ranks.join(torch.cat([torch.zeros(0, dtype=torch.long), *map(SampleShard.keys, places, rows)]))
        local = keys.argsort() - span.start
        return cls(local.where((local >= 0) & (local < len(span)), -1), ranks)

    @classmethod
    def whole(cls, rows: int) -> "Shard":
        """Creates a shard with all rows in this process."""
        return cls(torch.arange(rows))

    @property
    def rows(self) -> int:
        """Number of rows in all processes."""
        return len(self.local)

    def local_indices(self, rows: Tensor) -> Tensor:
        """Returns the local indices of those ``rows`` that this process has, in order."""
        local = self.local[rows]
        return local[local >= 0]


@dataclass(frozen=True)
class Shards:
    """Positions of this process's samples among all samples; None if all are in this process."""

    ranks: Ranks = ALONE
    places: Sequence[SampleShard] | None = None

    def of(self, calls: Sequence[int]) -> list[SampleShard]:
        """Returns the positions of the samples with these indices."""
        return [SampleShard(call) for call in calls] if self.places is None else [self.places[call] for call in calls]


WHOLE = Shards()
