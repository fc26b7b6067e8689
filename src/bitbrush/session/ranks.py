"""Several processes that share one quantization, through torch's process group (torchrun's or the caller's)."""

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

from bitbrush.session.launch import launched_ranks, local_rank

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""Timeout of an exchange between processes: as long as generation may take. torchrun ends all when one fails."""
_LATEST: deque[Tensor] = deque(maxlen=8)
"""Tensors of the latest exchanges, which must outlive gloo's use of them.

gloo's thread may drop the last reference while the process group ends. That end waits for the thread while it holds
Python's lock, which is a deadlock (seen occasionally with torch 2.6).
"""


class RankError(ConnectionError):
    """Another process of the run failed or has ended."""


@dataclass(frozen=True)
class Ranks:
    """The process group as seen from this process, number ``rank`` of ``world``.

    Every process calls the methods below in the same order, with tensors of the same shape and dtype. Each gets the
    same result, bit for bit. A single process exchanges nothing and gets its own values back.

    The methods raise RankError once another process has failed (:meth:`together`) or ended.
    """

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Flag of the first process."""
        return self.rank == 0

    @property
    def here(self) -> int:
        """Number of processes on this machine, as torchrun reports it; without torchrun, all."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.world)) if self.world > 1 else 1

    def share(self, pieces: Sequence[T]) -> Sequence[T]:
        """Returns every ``world``-th piece; the result does not depend on which process works on a piece."""
        return pieces[self.rank :: self.world]

    def cut(self, count: int) -> range:
        """Returns part ``rank`` of ``world`` consecutive parts of ``range(count)``; lengths differ by at most one."""
        return range(*(-(-rank * count // self.world) for rank in (self.rank, self.rank + 1)))

    def wait(self) -> None:
        """Waits until all processes have called it."""
        self._meet()

    def sum(self, x: Tensor) -> Tensor:
        """Sums over all processes, element by element; overwrites ``x``."""
        return self._reduce(x, ReduceOp.SUM)

    def least(self, x: Tensor) -> Tensor:
        """Computes the minimum over all processes, element by element; overwrites ``x``."""
        return self._reduce(x, ReduceOp.MIN)

    def most(self, x: Tensor) -> Tensor:
        """Computes the maximum over all processes, element by element; overwrites ``x``."""
        return self._reduce(x, ReduceOp.MAX)

    def join(self, x: Tensor) -> tuple[Tensor, range]:
        """Concatenates the vectors of all processes, which may differ in length.

        Args:
            x: Integers, shape (n,).

        Returns:
            The concatenation, shape (sum of n,), and the range in it that is this process's.
        """
        lengths = torch.zeros(self.world, dtype=torch.long)
        lengths[self.rank] = len(x)
        ends = self.sum(lengths).cumsum(0).tolist()
        span = range(ends[self.rank] - len(x), ends[self.rank])
        everything = x.new_zeros(ends[-1])
        everything[span.start : span.stop] = x
        return self.sum(everything), span

    def from_first(self, make: Callable[[], dict[str, Tensor] | None]) -> dict[str, Tensor] | None:
        """Calls ``make()`` in the first process only, and returns its result, on the CPU, in all processes."""
        tensors = make() if self.leads else None
        tensors = None if tensors is None else {key: tensor.cpu() for key, tensor in tensors.items()}
        if self.world == 1:
            return tensors
        self._meet()
        data = b"" if tensors is None else save({key: tensor.contiguous() for key, tensor in tensors.items()})
        with _reached():
            size = torch.tensor(len(data))
            distributed.broadcast(size, 0)
            if not size:
                return None
            text = _bytes(data) if self.leads else torch.empty(int(size), dtype=torch.uint8)
            distributed.broadcast(text, 0)
        return tensors if self.leads else load(text.numpy().tobytes())

    @contextmanager
    def together(self) -> Iterator[None]:
        """Waits at the end for all processes; a failure inside reaches the others at their next exchange.

        The others raise RankError then. It suits work that exchanges often, as the failed process waits until then.
        """
        try:
            yield
        except RankError:
            raise
        except Exception as error:
            with suppress(RankError):  # the others may have ended already
                self._meet(f"{type(error).__name__}: {error}")
            raise
        self.wait()

    def _reduce(self, x: Tensor, operation: ReduceOp.RedOpType) -> Tensor:
        if self.world == 1:
            return x
        self._meet()
        exchanged = x.cpu()  # gloo works on the CPU's memory
        with _reached():
            distributed.all_reduce(exchanged, operation)
        return x if exchanged is x else x.copy_(exchanged)

    def _meet(self, failure: str = "") -> None:
        """Exchanges failures before every other exchange, so that all processes end with the name of the failure."""
        if self.world == 1:
            return
        message = failure.encode()
        with _reached():
            lengths = torch.zeros(self.world, dtype=torch.long)
            lengths[self.rank] = len(message)
            _LATEST.append(lengths)
            distributed.all_reduce(lengths)
            failures = []
            for rank in lengths.nonzero().flatten().tolist():
                text = _bytes(message) if rank == self.rank else torch.empty(int(lengths[rank]), dtype=torch.uint8)
                _LATEST.append(text)
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
    except RuntimeError as error:  # torch.distributed raises nothing more specific
        raise RankError(
            f"another process of this job has ended; see its output, and start all processes again ({error})"
        ) from error


@contextmanager
def ranks() -> Iterator[Ranks]:
    """Yields the processes of the initialized torch.distributed group, or else those that torchrun started.

    A process that was started otherwise is alone. Each of torchrun's has a GPU of its own where there are enough.

    Raises:
        ValueError: The group cannot exchange CPU tensors, or torchrun's environment variables are damaged.
    """
    if distributed.is_available() and distributed.is_initialized():
        backend = distributed.get_backend_config()
        if "gloo" not in backend:
            raise ValueError(
                f"the process group's backend is {backend}; initialize it with gloo: processes exchange CPU tensors"
            )
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
        return
    rank, world = launched_ranks()
    if world == 1:
        yield ALONE
        return
    if local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    with _reached():
        distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Ranks(rank, world)
    finally:
        distributed.destroy_process_group()
