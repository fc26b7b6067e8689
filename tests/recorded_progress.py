"""A progress that keeps what was planned and what was reported."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from bitbrush.session.progress import Advance, PlannedWork


@dataclass
class RecordedProgress:
    """``works``: of the first plan, of which later ones are parts; ``reported``: titles and pieces, in order."""

    works: list[PlannedWork] = field(default_factory=list)
    reported: list[tuple[str, int]] = field(default_factory=list)

    def planned(self, works: Sequence[PlannedWork]) -> "RecordedProgress":
        self.works = self.works or list(works)
        return self

    @contextmanager
    def __call__(self, phase: str, total: int) -> Iterator[Advance]:
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1

        yield advance
        assert done == total, phase
        self.reported.append((phase, total))

    def require_as_planned(self, *titles: str) -> None:
        """Reported is what was planned, in that order; of certain ``titles`` only, if any are given."""
        assert all(work.cost > 0 for work in self.works)
        reported = [one for one in self.reported if not titles or one[0] in titles]
        assert reported == [(work.title, work.pieces) for work in self.works]
        assert reported
