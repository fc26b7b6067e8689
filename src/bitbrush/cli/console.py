"""Output, warnings and error reports of all commands."""

import functools
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import TextType

from bitbrush.cli.encoding import spell_what_streams_lack, spelled, visible
from bitbrush.cli.signals import Terminated

P = ParamSpec("P")

PACKAGE = Path(__file__).parents[1]
USER_ERROR, INTERRUPTED, TERMINATED = 2, 130, 143
WIDTH_IN_FILES = 180
_GAP = 2
"""Characters between two columns of a table."""


def out() -> Console:
    """Console of results on standard output; in a file, lines may have WIDTH_IN_FILES characters."""
    width = None if sys.stdout.isatty() else WIDTH_IN_FILES
    return Console(highlight=False, markup=False, emoji=False, width=width)


def say(text: str) -> None:
    """Prints results as text, wrapped at word boundaries."""
    say_unbroken(_wrapped(text, out().width))


def say_unbroken(text: str) -> None:
    """Prints results without line breaks, so that paths and commands can be copied."""
    out().print(visible(text), soft_wrap=True)


def show_facts(facts: Mapping[str, str]) -> None:
    """Prints names with their texts beside them."""
    room = max(map(cell_len, facts)) + _GAP
    for name, text in facts.items():
        say_unbroken(_wrapped(f"{name:<{room}}{text}", out().width, indent=" " * room))


def show(figures: Table) -> None:
    """Prints a table, split into several if it is too wide for the console.

    Each part has the first column and as many others as fit. If no two columns fit side by side, each row becomes a
    list of cells with their headings.
    """
    console = out()
    first, *others = figures.columns
    if _width(first) + _GAP + max(map(_width, others)) > console.width:
        _show_rows(figures)
        return
    groups: list[list[Column]] = [[]]
    for column in others:
        width = sum(_width(one) + _GAP for one in (first, *groups[-1], column)) - _GAP
        if groups[-1] and width > console.width:
            groups.append([])
        groups[-1].append(column)
    for number, group in enumerate(groups):
        if number:
            console.print()
        console.print(_table_of([first, *group], figures.title if number == 0 else None, console.encoding))


def _show_rows(figures: Table) -> None:
    if figures.title:
        say(str(figures.title))
    headings = [" ".join(str(column.header).split()) for column in figures.columns]
    for name, *cells in zip(*(column.cells for column in figures.columns), strict=True):
        say(str(name))
        for heading, cell in zip(headings[1:], cells, strict=True):
            say(f"  {heading}: {' '.join(str(cell).split())}")


def _wrapped(text: str, width: int, indent: str = "") -> str:
    """Wraps the text to a width, continuation lines with ``indent``; longer words stay whole."""
    unbroken: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    lines = text.split("\n")
    return "\n".join(textwrap.fill(line, width, subsequent_indent=indent, **unbroken) for line in lines)


def _width(column: Column) -> int:
    """Width of the longest line of the cells or the longest word of the heading, since only headings wrap."""
    lines = [line for cell in column.cells for line in str(cell).split("\n")]
    return max(map(cell_len, [*lines, *str(column.header).split()]), default=0)


def _table_of(columns: Sequence[Column], title: TextType | None, encoding: str) -> Table:
    """Copies columns to a table, spelled for the encoding first, since spelling changes lengths and so the layout."""
    headings = [spelled(str(column.header), encoding) for column in columns]
    made = table(*headings, title=None if title is None else spelled(str(title), encoding))
    for own, column in zip(made.columns, columns, strict=True):
        own.justify = column.justify
    for row in zip(*(column.cells for column in columns), strict=True):
        made.add_row(*(spelled(visible(str(cell)), encoding) for cell in row))
    return made


def err() -> Console:
    """Console of everything but results, on standard error, so that ``--json`` has standard output to itself."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def note(text: str) -> None:
    """Prints a line about the progress of a command."""
    _tell(text)


def warn(*texts: str) -> None:
    """Prints warnings."""
    for text in texts:
        _tell(f"warning: {text}", "yellow")


def _tell(text: str, style: str | None = None) -> None:
    console, text = err(), visible(text)
    console.print(_wrapped(text, console.width) if console.is_terminal else text, style=style)


@contextmanager
def own_warnings_as_lines() -> Iterator[None]:
    """Prints Python warnings of this package as :func:`warn` does; others are shown as before."""
    with warnings.catch_warnings():
        show_others = warnings.showwarning

        def show_warning(
            message: Warning | str, category: type[Warning], filename: str, *rest: Any, **more: Any
        ) -> None:
            if Path(filename).is_relative_to(PACKAGE):
                warn(str(message))
            else:
                show_others(message, category, filename, *rest, **more)

        warnings.showwarning = show_warning
        yield


def reporting_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Wraps a command so that user errors are reported in one message with exit code 2, in any encoding."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        spell_what_streams_lack()
        try:
            require_texts(kwargs)
            with own_warnings_as_lines():
                command(*args, **kwargs)
        except (ValueError, OSError) as error:
            _tell(f"error: {error}", "red")
            raise typer.Exit(USER_ERROR) from error
        except KeyboardInterrupt as interrupt:
            notes = [f"; {text}" for text in getattr(interrupt, "__notes__", ())]
            ended = isinstance(interrupt, Terminated)
            _tell(f"{'terminated' if ended else 'interrupted'}; nothing half-written is left behind{''.join(notes)}")
            raise typer.Exit(TERMINATED if ended else INTERRUPTED) from None
        except _gpu_is_full() as error:
            reason = ". ".join(str(error).split(". ")[:2])  # then come settings of torch's allocator
            _tell(
                f"error: {reason}. Lower the batch size, end what else is on the GPU, or let the CPU compute it "
                "(--device cpu, --runtime onednn)",
                "red",
            )
            raise typer.Exit(USER_ERROR) from error

    return run


def require_texts(arguments: Mapping[str, Any]) -> None:
    """Checks that arguments are text that files can hold: records and cards repeat them.

    Raises:
        ValueError: One holds a NUL byte or is no valid Unicode.
    """
    for name, value in arguments.items():
        for text in value if isinstance(value, list | tuple) else [value]:
            if isinstance(text, str | Path) and any(map(_is_unreadable, str(text))):
                raise ValueError(f"{name} is {str(text)!r}, which holds NUL or is no valid Unicode; write it in UTF-8")


def _is_unreadable(character: str) -> bool:
    return character == "\0" or "\ud800" <= character <= "\udfff"


@contextmanager
def resumable() -> Iterator[None]:
    """Adds to an interruption of the work inside that the same command resumes it."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        interrupt.add_note("run the same command again to go on from what is finished")
        raise


def _gpu_is_full() -> type[Exception]:
    """Returns torch's out-of-memory error; torch is imported only after an exception."""
    import torch

    return torch.OutOfMemoryError


def duration(seconds: float) -> str:
    """Formats a duration as ``45 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def table(*columns: str, title: str | None = None) -> Table:
    """Builds a table with a first column of text and others of numbers."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    return made


def quiet_libraries() -> None:
    """Silences progress bars and advice of diffusers and transformers; their errors stay."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
