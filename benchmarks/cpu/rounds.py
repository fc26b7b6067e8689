"""Interleaved rounds: everyone takes one turn in each, so that all see the same moods of the machine."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from cpu.artifact import RELAXED
from cpu.models import TIMESTEPS
from cpu.process import Worker
from cpu.registry import SUBJECTS

STEPS = [t for t in TIMESTEPS if t not in RELAXED]
RELAXED_ROW = "{}, relaxed step"


@dataclass
class Measured:
    """By row, one entry per round: seconds, and processor seconds. What the others used of the processor meanwhile."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    cpu_seconds: dict[str, list[float]] = field(default_factory=dict)
    idle_cores: float = 0.0

    def add(self, row: str, answer: dict[str, float]) -> None:
        self.seconds.setdefault(row, []).append(answer["seconds"])
        self.cpu_seconds.setdefault(row, []).append(answer["cpu_seconds"])


@contextmanager
def quiet(lock: Path | None) -> Iterator[None]:
    """Holds an exclusive lock on a file that other work on this machine may respect, if one is named."""
    with nullcontext() if lock is None else FileLock(lock):
        yield


def measure_calls(workers: Sequence[Worker], rounds: int, lock: Path | None) -> Measured:
    """``rounds`` turns of each worker, one denoiser call a turn, every round at another timestep.

    The lock is given back between rounds. Turns rotate: who follows whom differs from round to round.
    """
    measured = Measured()
    busy = idle = 0.0
    for round_ in range(rounds):
        with quiet(lock):
            for turn in range(len(workers)):
                worker = workers[(round_ + turn) % len(workers)]
                others = [other for other in workers if other is not worker]
                used, begun = sum(other.cpu_seconds() for other in others), time.perf_counter()
                for row, timestep in _turns(worker.name, round_):
                    measured.add(row, worker.ask(call=timestep))
                busy += time.perf_counter() - begun
                idle += sum(other.cpu_seconds() for other in others) - used
    measured.idle_cores = idle / busy
    return measured


def measure_generations(workers: Sequence[Worker], steps: int, rounds: int, lock: Path | None) -> Measured:
    """The same with a whole generation a turn, the lock given back between turns."""
    measured = Measured()
    for _ in range(rounds):
        for worker in workers:
            with quiet(lock):
                measured.add(worker.name, worker.ask(generate=steps))
    return measured


def _turns(name: str, round_: int) -> list[tuple[str, int]]:
    turns = [(name, STEPS[round_ % len(STEPS)])]
    if SUBJECTS[name].relaxed:
        turns.append((RELAXED_ROW.format(name), RELAXED[round_ % len(RELAXED)]))
    return turns


def facts(worker: Worker) -> dict[str, Any]:
    """Load time and memory, rounded."""
    return {key: round(value, 2) for key, value in {**worker.start, **worker.ask(memory=True)}.items()}
