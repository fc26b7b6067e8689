"""Processes that share a job, played by threads."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bitbrush.session.ranks import Ranks


@dataclass
class Table:
    """What threads that play processes lay down for each other."""

    world: int
    laid: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.world, timeout=60)


@dataclass(frozen=True)
class ThreadRanks(Ranks):
    """Ranks whose processes are threads."""

    table: Table = field(default_factory=lambda: Table(1))

    def _exchange(self, own: Any) -> list[Any]:
        self.table.laid[self.rank] = own
        self.table.barrier.wait()
        everyone = [self.table.laid[rank] for rank in range(self.world)]
        self.table.barrier.wait()
        return everyone

    def wait(self) -> None:
        self._exchange(None)

    def sum(self, x: Tensor) -> Tensor:
        return torch.stack(self._exchange(x.clone())).sum(0)

    def least(self, x: Tensor) -> Tensor:
        return torch.stack(self._exchange(x.clone())).amin(0)

    def most(self, x: Tensor) -> Tensor:
        return torch.stack(self._exchange(x.clone())).amax(0)

    def from_first(self, make: Callable[[], dict[str, Tensor] | None]) -> dict[str, Tensor] | None:
        first: dict[str, Tensor] | None = self._exchange(make() if self.leads else None)[0]
        return first


def in_threads(world: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """``work(ranks)`` of every process; it draws from generators of its own, as threads share torch's global one."""
    table, results = Table(world), {}

    def run(rank: int) -> None:
        results[rank] = work(ThreadRanks(rank, world, table))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(world)]
