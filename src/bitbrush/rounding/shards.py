"""The rows of a block's inputs where they lie in several processes, numbered as in a single one.

So all processes draw the same rows, and what each computes of its own adds up to what a single process computes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitbrush.session.ranks import ALONE, Ranks

ROWS_PER_CALL = 1 << 32
"""More than any call has: what keeps the numbers of different calls apart."""


@dataclass(frozen=True)
class SampleShard:
    """Where a sample stands among those of all processes.

    It is of the ``order``-th call, and has ``count`` of its batch's ``of`` prompts, from ``begin`` on. ``order`` does
    not count without gaps.
    """

    order: int
    begin: int = 0
    count: int = 1
    of: int = 1

    def keys(self, rows: int) -> Tensor:
        """A number for each of a block call's rows, (rows,), int64, that sorts them as if the batch were whole.

        Guidance puts all prompts of the batch behind each other once for each condition.
        """
        row = torch.arange(rows)
        return self.order * ROWS_PER_CALL + row // self.count * self.of + self.begin + row % self.count


@dataclass(frozen=True)
class Shard:
    """``local``, (rows of all processes,), int64: the index that each row has in this process, -1 in another's."""

    local: Tensor
    ranks: Ranks = ALONE

    @classmethod
    def of(cls, places: Sequence[SampleShard], rows: Sequence[int], ranks: Ranks) -> "Shard":
        """From the places of this process's calls, and how many rows each has; a process may have none."""
        keys, own = ranks.join(torch.cat([torch.zeros(0, dtype=torch.long), *map(SampleShard.keys, places, rows)]))
        local = keys.argsort() - own.start
        return cls(local.where((local >= 0) & (local < len(own)), -1), ranks)

    @classmethod
    def whole(cls, rows: int) -> "Shard":
        """All rows are here."""
        return cls(torch.arange(rows))

    @property
    def rows(self) -> int:
        """In all processes."""
        return len(self.local)

    def own(self, rows: Tensor) -> Tensor:
        """The indices in this process of those of ``rows`` that lie in it, in their order."""
        local = self.local[rows]
        return local[local >= 0]


@dataclass(frozen=True)
class Shards:
    """Which of all samples this process has: a place for each, in their order; None where all are here."""

    ranks: Ranks = ALONE
    places: Sequence[SampleShard] | None = None

    def of(self, calls: Sequence[int]) -> list[SampleShard]:
        """The places of the samples with these indices."""
        return [SampleShard(call) for call in calls] if self.places is None else [self.places[call] for call in calls]


WHOLE = Shards()
