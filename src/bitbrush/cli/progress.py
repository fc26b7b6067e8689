"""How commands show progress: each phase, and the time that it and all of them still take."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bitbrush.cli.console import duration, err, note
from bitbrush.session.progress import Advance, PlannedWork

SECONDS_BETWEEN_LINES = 10.0


class Shown:
    """Shows each phase of a command and the time that it still takes: a bar on a terminal, else a line now and then.

    Of several that are :meth:`planned` it shows the number, too, and the time left in all: that of a unit of cost so
    far, times the cost of what is to come.
    """

    def __init__(self, works: Sequence[PlannedWork] = ()) -> None:
        self._planned, self._next = works, 0
        self._spent = _Spent()

    def planned(self, works: Sequence[PlannedWork]) -> "Shown":
        """Shows ``works``; where these are part of a longer plan, that one still."""
        return self if self._planned or len(works) == 1 else Shown(works)

    @contextmanager
    def __call__(self, phase: str, total: int) -> Iterator[Advance]:
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
        """The index of the next planned phase of that title."""
        for number in range(self._next, len(self._planned)):
            if self._planned[number].title == title:
                self._next = number + 1
                return number
        return None


class _Spent(NamedTuple):
    """What phases have taken, in seconds and in units of cost."""

    seconds: float = 0.0
    cost: float = 0.0


class _Phase:
    """A phase that runs since this was made, ``done`` of its ``total`` pieces so far."""

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
    """``cost`` of each piece; ``later``: of all phases after this one; ``before``: what those before have taken."""

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
"""Of commands that plan no phases."""


class _Lines:
    """Progress for log files: a line every ten seconds, and one at the end of what took longer than that."""

    def __init__(self, phase: _Phase) -> None:
        self._phase, self._told = phase, 0.0

    def advance(self) -> None:
        phase = self._phase
        phase.advance()
        late = phase.seconds > SECONDS_BETWEEN_LINES and phase.done == phase.total
        if late or phase.seconds - self._told > SECONDS_BETWEEN_LINES:
            note(f"{phase.label}: {phase.done}/{phase.total}, {duration(phase.seconds)}, {phase.left}")
            self._told = phase.seconds
