"""What a stage of a method is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from bitbrush.methods.state import QuantizationState
from bitbrush.session.progress import PlannedWork
from bitbrush.timeline.trajectory import PromptBatch

Run: TypeAlias = Callable[[QuantizationState], QuantizationState]


@dataclass(frozen=True)
class StageCalls:
    """Denoiser calls of a stage in this process: ``per_batch`` for each of ``batches``."""

    batches: Sequence[PromptBatch] = ()
    per_batch: int = 0

    @property
    def total(self) -> int:
        """Calls of all batches."""
        return len(self.batches) * self.per_batch


def always(_: QuantizationState) -> bool:
    """Every recipe wants the stage."""
    return True


def no_calls(_: QuantizationState, __: int) -> StageCalls:
    """The stage makes no denoiser calls of whole batches."""
    return StageCalls()


def accept(_: QuantizationState) -> None:
    """The stage takes every recipe."""


@dataclass(frozen=True)
class Stage:
    """One step of a method. The method's list of stages serves running, resuming, dry runs, progress and the docs.

    Args:
        name: The stage's name in progress reports, costs and docs, e.g. ``progressive_calibration``.
        summary: One line for the docs.
        run: From the state before the stage to the state after it.
        wanted: Whether the recipe asks for the stage; asked when its turn comes, and before any stage for the plan.
        calls: Denoiser calls, given the number of calls that the pipeline itself makes.
        title: The title under which ``run`` reports progress, once for each call that the pipeline makes.
        work: What ``run`` reports of, where it reports in another way.
        changes_network: Whether it replaces the denoiser. An artifact's denoiser has been replaced already, so
            recalibration leaves such stages out.
        check: Raises ValueError where the recipe asks for what the stage cannot do; computes nothing.
    """

    name: str
    summary: str
    run: Run
    wanted: Callable[[QuantizationState], bool] = always
    calls: Callable[[QuantizationState, int], StageCalls] = no_calls
    title: str = ""
    work: Callable[[QuantizationState, int], tuple[PlannedWork, ...]] | None = None
    changes_network: bool = False
    check: Callable[[QuantizationState], None] = accept

    @property
    def is_phase(self) -> bool:
        """Whether costs are recorded: of stages that make denoiser calls or report work; others take no time."""
        return self.calls is not no_calls or self.work is not None or bool(self.title)

    def planned_work(self, state: QuantizationState, of_pipeline: int) -> tuple[PlannedWork, ...]:
        """Returns what progress will be reported of, where the pipeline itself makes so many denoiser calls."""
        if self.work is not None:
            return self.work(state, of_pipeline)
        calls = self.calls(state, of_pipeline)
        prompts = sum(len(batch.prompts) for batch in calls.batches)
        return (PlannedWork(self.title, of_pipeline, prompts * calls.per_batch / of_pipeline),) if self.title else ()
