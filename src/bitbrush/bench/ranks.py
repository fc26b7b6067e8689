"""Several processes that share one job: `torchrun --nproc-per-node N -m bitbrush bench ...`."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from torch import distributed

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""How long a process waits for the others: as long as generating takes. torchrun ends all when one fails."""


@dataclass(frozen=True)
class Ranks:
    """This process is number ``rank`` of ``world``."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, pieces: Sequence[T]) -> Sequence[T]:
        """Every ``world``-th piece: which process works on a piece decides nothing about the result."""
        return pieces[self.rank :: self.world]

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.world > 1:
            distributed.barrier()


@contextmanager
def ranks() -> Iterator[Ranks]:
    """As torchrun's environment says; a process started otherwise is alone."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Ranks(distributed.get_rank(), world)
    finally:
        distributed.destroy_process_group()
