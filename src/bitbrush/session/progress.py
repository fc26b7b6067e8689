"""Progress reports of long work; the caller decides what to do with them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

Advance: TypeAlias = Callable[[], None]


class Progress(Protocol):
    """Receiver of progress reports: a callable that opens a phase of equal pieces of work."""

    def __call__(self, phase: str, total: int) -> AbstractContextManager[Advance]:
        """Opens a phase of ``total`` pieces; the context's value is called after each piece."""
        ...


@dataclass(frozen=True)
class PlannedWork:
    """A future phase ``title`` of ``pieces`` equal pieces of work.

    ``cost`` is the cost of one piece, in denoiser calls of one prompt.
    """

    title: str
    pieces: int
    cost: float


@runtime_checkable
class Planner(Protocol):
    """Progress that shows more if it knows the phases in advance."""

    def planned(self, works: Sequence[PlannedWork]) -> Progress:
        """Returns the progress for ``works``, in that order; phases that an earlier run finished may be skipped."""


def planned(progress: Progress, works: Callable[[], Sequence[PlannedWork]]) -> Progress:
    """Announces the future phases to ``progress`` if it is a :class:`Planner`."""
    return progress.planned(works()) if isinstance(progress, Planner) else progress


@contextmanager
def silent(phase: str, total: int) -> Iterator[Advance]:
    """Reports nothing."""
    yield lambda: None


def part_of(advance: Advance) -> Progress:
    """Returns progress for phases that are parts of longer work: each of their pieces advances that work by one."""

    @contextmanager
    def progress(phase: str, total: int) -> Iterator[Advance]:
        yield advance

    return progress
