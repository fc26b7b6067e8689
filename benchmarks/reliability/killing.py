"""Processes that are killed by SIGKILL before a change of the disk, or after some seconds."""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitbrush.session import replacing

CHANGES = ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync")
"""Functions of ``os`` through which Python, pathlib and shutil change folders; exchanges of folders count, too."""
RENAMES = ("rename", "replace", "exchange")
FAILED = 70


@dataclass(frozen=True)
class Change:
    """A call of ``function`` for the file or folder ``name``."""

    function: str
    name: str

    def __str__(self) -> str:
        return f"{self.function} {self.name}"


class Counter:
    """Counts changes of the disk in this process, and kills it before the one with this number or name."""

    def __init__(self, last: int | Change | None, log: Path | None = None) -> None:
        self._last, self._log, self._count = last, log, 0

    def install(self) -> None:
        for name in CHANGES:
            setattr(os, name, self._counted(name, getattr(os, name)))
        replacing._exchange = self._counted("exchange", replacing._exchange)

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            change = Change(name, self._name(path))
            if self._last in (self._count, change):
                os.kill(os.getpid(), signal.SIGKILL)
            self._count += 1
            if self._log is not None:
                with self._log.open("a", encoding="utf-8") as file:
                    file.write(f"{change}\n")
            return function(path, *args, **kwargs)

        return call

    def _name(self, path: Any) -> str:
        target = Path(f"/proc/self/fd/{path}").resolve() if isinstance(path, int) else Path(path)
        return target.name


def run(
    function: Callable[[], Any],
    *,
    before: int | Change | None = None,
    after: float | None = None,
    log: Path | None = None,
    output: Path | None = None,
) -> int:
    """Calls ``function()`` in a forked process and returns its exit status; -9 if it was killed.

    Args:
        function: Code to run; a SystemExit sets the status.
        before: Change of the disk before which the process is killed, or its number.
        after: Seconds until the process is killed.
        log: File for a line per change.
        output: File for what it prints.
    """
    process = os.fork()
    if process == 0:
        _child(function, Counter(before, log), output)
    deadline = None if after is None else time.monotonic() + after
    while True:
        ended, status = os.waitpid(process, 0 if deadline is None else os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if deadline is not None and time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
            deadline = None
        else:
            time.sleep(0.001)


def changes(log: Path) -> list[Change]:
    """Reads what :func:`run` logged."""
    return [Change(*line.split(" ", 1)) for line in log.read_text(encoding="utf-8").splitlines()]


def _child(function: Callable[[], Any], counter: Counter, output: Path | None) -> None:
    status = FAILED
    try:
        if output is not None:
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
        counter.install()
        function()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
