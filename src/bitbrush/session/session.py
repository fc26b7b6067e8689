"""Session: one value for the state of a long run, so that algorithms take it instead of five parameters."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from bitbrush.session.costs import CostLedger
from bitbrush.session.journal import NO_JOURNAL, Journal
from bitbrush.session.offload import IN_MEMORY, Offload
from bitbrush.session.progress import Progress, silent
from bitbrush.session.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Session:
    """State of a long run.

    Args:
        ranks: The processes that share the work.
        journal: Finished pieces of work, from which an interrupted run resumes.
        offload: Destination of tensors that nothing reads at the moment.
        progress: Receiver of progress reports.
        costs: Time, memory and denoiser calls of each phase.
    """

    ranks: Ranks = ALONE
    journal: Journal = NO_JOURNAL
    offload: Offload = IN_MEMORY
    progress: Progress = silent
    costs: CostLedger = field(default_factory=CostLedger)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Records the costs of the code inside under ``name``."""
        with self.costs.phase(name):
            yield

    def count_call(self) -> None:
        """Counts one denoiser call of every prompt batch of this process in the current phase."""
        self.costs.count_call()
