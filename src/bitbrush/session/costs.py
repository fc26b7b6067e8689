"""What each phase of a quantization cost."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bitbrush.session.allocator import trim
from bitbrush.session.memory import peak_resident_mib


@dataclass(frozen=True)
class PhaseCost:
    """``seconds`` of wall time, ``peak_mib`` the process's highest resident memory so far, calls per prompt batch."""

    seconds: float
    peak_mib: float
    denoiser_calls_per_batch: int


class CostLedger:
    """Costs by phase, in the order in which the phases ended; what each freed goes back to the system then."""

    def __init__(self) -> None:
        self.phases: dict[str, PhaseCost] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator["CallCounter"]:
        calls = CallCounter()
        began = time.perf_counter()
        yield calls
        self.phases[name] = PhaseCost(time.perf_counter() - began, peak_resident_mib(), calls.per_batch)
        trim()


class CallCounter:
    """Counts the denoiser calls that every prompt batch has seen."""

    def __init__(self) -> None:
        self.per_batch = 0

    def add(self) -> None:
        self.per_batch += 1
