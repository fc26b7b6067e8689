"""Several processes that share one job, by torch's process group: torchrun's, or one that the caller has made."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from safetensors.torch import load, save
from torch import Tensor, distributed
from torch.distributed import ReduceOp

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""How long a process waits for the others: as long as generating takes. torchrun ends all when one fails."""
_KEPT: deque[Tensor] = deque(maxlen=8)
"""What processes met over last. gloo's thread may let go of it when the process group ends already, and that waits for
the thread with Python's lock in hand: the last reference must not be the thread's. (torch 2.6 hung so now and then.)"""


class RankError(ConnectionError):
    """Another process of the job failed, or has ended."""


@dataclass(frozen=True)
class Ranks:
    """This process is number ``rank`` of ``world``.

    Every process calls the methods below in the same order, with tensors of the same shape and dtype; each has the same
    result, bit for bit. A single process exchanges nothing and is given back what it gave. They raise RankError once
    another process has failed (:meth:`together`) or ended.
    """

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def here(self) -> int:
        """Processes on this machine: as torchrun tells, else all."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.world)) if self.world > 1 else 1

    def share(self, pieces: Sequence[T]) -> Sequence[T]:
        """Every ``world``-th piece: which process works on a piece decides nothing about the result."""
        return pieces[self.rank :: self.world]

    def cut(self, count: int) -> range:
        """The ``rank``-th of ``world`` consecutive shares of ``range(count)``; they differ by one at most."""
        return range(*(-(-rank * count // self.world) for rank in (self.rank, self.rank + 1)))

    def wait(self) -> None:
        """Returns when all processes have come here."""
        self._meet()

    def sum(self, x: Tensor) -> Tensor:
        """Over all processes, element by element; overwrites ``x``."""
        return self._reduce(x, ReduceOp.SUM)

    def least(self, x: Tensor) -> Tensor:
        """As :meth:`sum`, the minimum."""
        return self._reduce(x, ReduceOp.MIN)

    def most(self, x: Tensor) -> Tensor:
        """As :meth:`sum`, the maximum."""
        return self._reduce(x, ReduceOp.MAX)

    def join(self, x: Tensor) -> tuple[Tensor, range]:
        """The vectors of all processes, which may differ in length, one after the other; and where in it this one is.

        ``x``: (n,) -> (sum of n,), integers.
        """
        lengths = torch.zeros(self.world, dtype=torch.long)
        lengths[self.rank] = len(x)
        ends = self.sum(lengths).cumsum(0).tolist()
        own = range(ends[self.rank] - len(x), ends[self.rank])
        everything = x.new_zeros(ends[-1])
        everything[own.start : own.stop] = x
        return self.sum(everything), own

    def from_first(self, make: Callable[[], dict[str, Tensor] | None]) -> dict[str, Tensor] | None:
        """What ``make()`` gives in the first process, where alone it is called; on the processor."""
        made = make() if self.leads else None
        made = None if made is None else {key: tensor.cpu() for key, tensor in made.items()}
        if self.world == 1:
            return made
        self._meet()
        data = b"" if made is None else save({key: tensor.contiguous() for key, tensor in made.items()})
        with _reached():
            size = torch.tensor(len(data))
            distributed.broadcast(size, 0)
            if not size:
                return None
            text = _bytes(data) if self.leads else torch.empty(int(size), dtype=torch.uint8)
            distributed.broadcast(text, 0)
        return made if self.leads else load(text.numpy().tobytes())

    @contextmanager
    def together(self) -> Iterator[None]:
        """All leave together; one that fails inside tells the others when they next exchange something.

        These raise RankError. For work that exchanges often: until then the failed process waits, and does not end.
        """
        try:
            yield
        except RankError:
            raise
        except Exception as error:
            with suppress(RankError):  # nobody may be left to hear it
                self._meet(f"{type(error).__name__}: {error}")
            raise
        self.wait()

    def _reduce(self, x: Tensor, operation: ReduceOp.RedOpType) -> Tensor:
        if self.world > 1:
            self._meet()
            with _reached():
                distributed.all_reduce(x, operation)
        return x

    def _meet(self, failure: str = "") -> None:
        """Precedes every exchange, so that a process that fails anywhere between two of them ends all by name."""
        if self.world == 1:
            return
        own = failure.encode()
        with _reached():
            lengths = torch.zeros(self.world, dtype=torch.long)
            lengths[self.rank] = len(own)
            _KEPT.append(lengths)
            distributed.all_reduce(lengths)
            failures = []
            for rank in lengths.nonzero().flatten().tolist():
                text = _bytes(own) if rank == self.rank else torch.empty(int(lengths[rank]), dtype=torch.uint8)
                _KEPT.append(text)
                distributed.broadcast(text, rank)
                failures.append(f"process {rank} of {self.world} failed: {text.numpy().tobytes().decode()}")
        if failures and not failure:
            raise RankError("; ".join(failures))


ALONE = Ranks()


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


@contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # all that torch.distributed raises
        raise RankError(
            f"another process of this job has ended; see what it said, and start all of them again ({error})"
        ) from error


@contextmanager
def ranks() -> Iterator[Ranks]:
    """The processes of the group that torch.distributed was initialized with, else those that torchrun started.

    A process started otherwise is alone. Raises ValueError for a group that exchanges no tensors of the CPU.
    """
    if distributed.is_available() and distributed.is_initialized():
        backend = distributed.get_backend_config()
        if "gloo" not in backend:
            raise ValueError(f"the process group's backend is {backend}; initialize it with gloo: work is on the CPU")
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
        return
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield ALONE
        return
    distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Ranks(distributed.get_rank(), world)
    finally:
        distributed.destroy_process_group()
