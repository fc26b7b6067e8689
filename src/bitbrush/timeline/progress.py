"""How long work reports that it goes on; what is done with the reports is the caller's business."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

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
