"""What all commands share: where they print, how they show progress, and how they fail."""

import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, ParamSpec

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bitbrush.timeline.progress import Advance, PlannedWork

P = ParamSpec("P")

USER_ERROR, INTERRUPTED = 2, 130
SECONDS_BETWEEN_LINES = 10.0
WIDTH_IN_FILES = 180


def out() -> Console:
    """Results: standard output; in a file, lines are as long as they need to be."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=WIDTH_IN_FILES)


def err() -> Console:
    """Everything else: standard error, so that ``--json`` has standard output to itself."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """A line that tells what goes on."""
    err().print(text, markup=False)


def warn(text: str) -> None:
    err().print(f"warning: {text}", markup=False, style="yellow")


def reporting_errors(command: Callable[P, None]) -> Callable[P, None]:
    """The command, with what its user can put right told in one message and by exit code 2."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (ValueError, OSError) as error:
            err().print(f"error: {error}", markup=False, style="red")
            raise typer.Exit(USER_ERROR) from error
        except KeyboardInterrupt:
            err().print("interrupted; nothing half-written is left behind", markup=False)
            raise typer.Exit(INTERRUPTED) from None
        except _card_is_full() as error:
            told = ". ".join(str(error).split(". ")[:2])  # then come settings of torch's allocator
            err().print(
                f"error: {told}. Lower the batch size, end what else is on the card, or let the processor compute it "
                "(--device cpu, --runtime onednn)",
                markup=False,
                style="red",
            )
            raise typer.Exit(USER_ERROR) from error

    return run


def _card_is_full() -> type[Exception]:
    """Asked for when something was raised: torch is not imported for it."""
    import torch

    return torch.OutOfMemoryError


class Shown:
    """Shows each phase of a command and the time that it still takes: a bar on a terminal, else a line now and then.

    Of ``planned`` phases it shows the number, too, and the time left in all: that of a unit of cost so far, times the
    cost of what is to come. A planned phase may be passed over, as one is that an earlier run has finished.
    """

    def __init__(self, planned: Sequence[PlannedWork] = ()) -> None:
        self._planned, self._next = planned, 0
        self._spent = _Spent()

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
        return self.seconds / self.done * (self.total - self.done)

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


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def table(*columns: str, title: str | None = None) -> Table:
    """A table whose first column is text and whose others are figures."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    return made


def quiet_libraries() -> None:
    """Keeps diffusers' and transformers' own bars and advice off the screen; their errors stay."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
