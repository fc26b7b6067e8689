"""How long work reports that it goes on; what is done with the reports is the caller's business."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

Advance: TypeAlias = Callable[[], None]


class Progress(Protocol):
    """A phase of ``total`` equal pieces of work; the context's value is called after each."""

    def __call__(self, phase: str, total: int) -> AbstractContextManager[Advance]: ...


@dataclass(frozen=True)
class PlannedWork:
    """A phase that will be reported under ``title``: ``pieces`` of work, each of ``cost``.

    A piece costs as much as so many denoiser calls of one prompt.
    """

    title: str
    pieces: int
    cost: float


@runtime_checkable
class Planner(Protocol):
    """A progress that shows more where it knows what is to come."""

    def planned(self, works: Sequence[PlannedWork]) -> Progress:
        """The progress of ``works``, in that order; some may be passed over, as an earlier run has finished them."""


def planned(progress: Progress, works: Callable[[], Sequence[PlannedWork]]) -> Progress:
    """Tells ``progress`` what is to come, if it wants to know."""
    return progress.planned(works()) if isinstance(progress, Planner) else progress


@contextmanager
def silent(phase: str, total: int) -> Iterator[Advance]:
    """Reports nothing."""
    yield lambda: None


def part_of(advance: Advance) -> Progress:
    """Of phases that are parts of one longer work: each of their pieces is one of that."""

    @contextmanager
    def progress(phase: str, total: int) -> Iterator[Advance]:
        yield advance

    return progress
