"""Cost of each phase of a quantization."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bitbrush.session.allocator import trim
from bitbrush.session.memory import peak_resident_mib


@dataclass(frozen=True)
class PhaseCost:
    """Wall time, peak resident memory of the process so far, and denoiser calls per prompt batch of one phase."""

    seconds: float
    peak_mib: float
    denoiser_calls_per_batch: int


class CostLedger:
    """Costs by phase, in the order in which the phases ended; the end of a phase returns freed memory to the system.

    ``calls`` counts the denoiser calls of every prompt batch.
    """

    def __init__(self) -> None:
        self.phases: dict[str, PhaseCost] = {}
        self.calls = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Records the costs of the code inside."""
        before, began = self.calls, time.perf_counter()
        yield
        self.phases[name] = PhaseCost(time.perf_counter() - began, peak_resident_mib(), self.calls - before)
        trim()

    def count_call(self) -> None:
        """Counts one denoiser call of every prompt batch."""
        self.calls += 1
