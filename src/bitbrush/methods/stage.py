"""Stages of a method."""

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
        """Number of calls of all batches."""
        return len(self.batches) * self.per_batch


def always(_: QuantizationState) -> bool:
    """Selects the stage for every recipe."""
    return True


def no_calls(_: QuantizationState, __: int) -> StageCalls:
    """Declares a stage without denoiser calls of whole batches."""
    return StageCalls()


def accept(_: QuantizationState) -> None:
    """Accepts every recipe."""


@dataclass(frozen=True)
class Stage:
    """Step of a method; a method's tuple of stages drives running, resuming, dry runs, progress and the docs.

    Args:
        name: Name in progress reports, costs and docs, e.g. ``progressive_calibration``.
        summary: Description in one line for the docs.
        run: Function from the state before the stage to the state after it.
        wanted: Whether the recipe selects the stage; evaluated before any stage for the plan, and again in its turn.
        calls: Denoiser calls, given the number of calls of the pipeline itself.
        title: Title of progress reports, one for each call of the pipeline.
        work: Work items of ``run``, if it reports differently.
        changes_network: Whether the stage replaces the denoiser. Recalibration skips such stages, because an artifact's
            denoiser has already been replaced.
        check: Check that raises ValueError for an unsupported recipe; computes nothing.
        reads_prompts: Whether ``run`` reads prompts without a denoiser call.
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
    reads_prompts: bool = False

    @property
    def needs_pipeline(self) -> bool:
        """True if a denoiser alone does not suffice: the stage needs prompts, or gives another denoiser."""
        return self.reads_prompts or self.calls is not no_calls or self.changes_network

    @property
    def is_phase(self) -> bool:
        """True if the stage makes denoiser calls or reports progress; costs of other stages are negligible."""
        return self.calls is not no_calls or self.work is not None or bool(self.title)

    def planned_work(self, state: QuantizationState, of_pipeline: int) -> tuple[PlannedWork, ...]:
        """Lists the work items of progress reports for a pipeline with ``of_pipeline`` denoiser calls."""
        if self.work is not None:
            return self.work(state, of_pipeline)
        calls = self.calls(state, of_pipeline)
        prompts = sum(len(batch.prompts) for batch in calls.batches)
        return (PlannedWork(self.title, of_pipeline, prompts * calls.per_batch / of_pipeline),) if self.title else ()
