"""The parent's side of a subject's process."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self

from cpu.subjects import THREADS, Task

PATIENCE = 1800.0
"""Seconds until a process that does not answer is ended: compiling takes minutes."""

_BENCHMARKS = Path(__file__).resolve().parent.parent
_RAISED = re.compile(r"[\w.]+(Error|Exception): ")
_TICKS = os.sysconf("SC_CLK_TCK")


class SubjectError(RuntimeError):
    """The subject's process ended; the message is the last error that it reported."""


class Worker:
    """A subject that was loaded and warmed up, and waits without using the processor until it is asked."""

    def __init__(self, name: str, task: Task, log: Path) -> None:
        self.name = name
        self._log = log
        with log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                _command("serve", name, task),
                env=_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                encoding="utf-8",
            )
        self.start = self._answer()

    def ask(self, **command: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            print(json.dumps(command), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            self._process.wait()
            raise SubjectError(_why(self._process, self._log)) from None
        return self._answer()

    def cpu_seconds(self) -> float:
        """Processor time of all its threads so far."""
        stat = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii")
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / _TICKS

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        alarm = threading.Timer(PATIENCE, self._process.kill)
        alarm.start()
        try:
            line = self._process.stdout.readline()
        finally:
            alarm.cancel()
        if not line:
            self._process.wait()
            raise SubjectError(_why(self._process, self._log))
        answer: dict[str, Any] = json.loads(line)
        return answer


def prepare(name: str, task: Task, log: Path) -> None:
    """Makes what the subject loads, in a process of its own, so that its memory is not the subject's."""
    with log.open("w", encoding="utf-8") as errors:
        done = subprocess.run(
            _command("prepare", name, task), env=_environment(), stdout=errors, stderr=errors, check=False
        )
    if done.returncode:
        raise SubjectError(_why(done, log))


def _command(action: str, name: str, task: Task) -> list[str]:
    return [sys.executable, "-m", "cpu", action, name, task.model.name, str(task.size), str(task.scratch)]


def _environment() -> dict[str, str]:
    paths = [str(_BENCHMARKS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(THREADS)}


def _why(process: "subprocess.Popen[str] | subprocess.CompletedProcess[bytes]", log: Path) -> str:
    if process.returncode < 0:
        return f"ended by {signal.Signals(-process.returncode).name}"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    raised = [line for line in lines if _RAISED.match(line)]
    return [f"exit status {process.returncode}", *lines[-1:], *raised[-1:]][-1]
