"""Progress of commands: each phase, and the estimated time left for it and for all of them."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bitbrush.cli.console import duration, err, note
from bitbrush.session.progress import Advance, PlannedWork

SECONDS_BETWEEN_LINES = 10.0


class Shown:
    """Progress of the phases of a command with the estimated time left: a bar on a terminal, else periodic lines.

    For :meth:`planned` phases it also shows their number and the total time left. That is the time per unit of cost so
    far, times the cost of the remaining work.
    """

    def __init__(self, works: Sequence[PlannedWork] = ()) -> None:
        self._planned, self._next = works, 0
        self._spent = _Spent()

    def planned(self, works: Sequence[PlannedWork]) -> "Shown":
        """Shows ``works``; within a longer plan, that plan stays."""
        return self if self._planned or len(works) == 1 else Shown(works)

    @contextmanager
    def __call__(self, phase: str, total: int) -> Iterator[Advance]:
        """Shows one phase of ``total`` pieces; the context is the function to call after each piece."""
        number = self._number(phase)
        if number is None:
            with _display(_Phase(phase, total)) as advance:
                yield advance
            return
        label = f"{number + 1} of {len(self._planned)}, {phase}"
        later = sum(one.pieces * one.cost for one in self._planned[number + 1 :])
        running = _PlannedPhase(label, total, self._planned[number].cost, later, self._spent)
        with _display(running) as advance:
            yield advance
        self._spent = running.spent

    def _number(self, title: str) -> int | None:
        """Returns the index of the next planned phase with that title."""
        for number in range(self._next, len(self._planned)):
            if self._planned[number].title == title:
                self._next = number + 1
                return number
        return None


class _Spent(NamedTuple):
    """Time and cost of finished phases, in seconds and in units of cost."""

    seconds: float = 0.0
    cost: float = 0.0


class _Phase:
    """Phase that started at its construction, with ``done`` of its ``total`` pieces finished."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.done = label, total, 0
        self.seconds, self._began = 0.0, time.monotonic()

    def advance(self) -> None:
        self.done += 1
        self.seconds = time.monotonic() - self._began

    @property
    def seconds_left(self) -> float:
        return self.seconds / self.done * max(0, self.total - self.done)

    @property
    def left(self) -> str:
        return f"{duration(self.seconds_left)} left"


class _PlannedPhase(_Phase):
    """Planned phase: ``cost`` is per piece, ``later`` that of all later phases, ``before`` what earlier ones took."""

    def __init__(self, label: str, total: int, cost: float, later: float, before: _Spent) -> None:
        super().__init__(label, total)
        self._cost, self._later, self._before = cost, later, before

    @property
    def spent(self) -> _Spent:
        return _Spent(self._before.seconds + self.seconds, self._before.cost + self._cost * self.done)

    @property
    def left(self) -> str:
        in_all = self.seconds_left + self.spent.seconds / self.spent.cost * self._later
        return f"{super().left}, {duration(in_all)} left in all"


@contextmanager
def _display(phase: _Phase) -> Iterator[Advance]:
    console = err()
    if not console.is_terminal:
        yield _Lines(phase).advance
        return
    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console, disable=not phase.total) as progress:
        task = progress.add_task(phase.label, total=phase.total, left="")

        def advance() -> None:
            phase.advance()
            progress.update(task, advance=1, left=phase.left)

        yield advance


shown = Shown()
"""Progress of commands without planned phases."""


class _Lines:
    """Progress for log files: a line every ten seconds, and a last one for phases that took longer."""

    def __init__(self, phase: _Phase) -> None:
        self._phase, self._told = phase, 0.0

    def advance(self) -> None:
        phase = self._phase
        phase.advance()
        late = phase.seconds > SECONDS_BETWEEN_LINES and phase.done == phase.total
        if late or phase.seconds - self._told > SECONDS_BETWEEN_LINES:
            note(f"{phase.label}: {phase.done}/{phase.total}, {duration(phase.seconds)}, {phase.left}")
            self._told = phase.seconds
