"""Learned step sizes as a stage: of which layers, and on which prompts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from bitbrush.calibration.step_sizes import (
    LEARNED_PROMPTS,
    LEARNING_CALLS,
    STATIC_CALLS,
    StepSizeLearner,
    of_first_prompts,
)
from bitbrush.methods.method import Job, PlannedPhase
from bitbrush.methods.recipe import StepSizes
from bitbrush.session.costs import CallCounter
from bitbrush.timeline.schedule import ActivationSchedule
from bitbrush.timeline.trajectory import DenoiserCall

STEP_SIZES = "step_sizes"


def learns_step_sizes(job: Job) -> bool:
    return job.recipe.step_sizes is StepSizes.LEARNED


def learner_of_step_sizes(job: Job, calls: CallCounter) -> StepSizeLearner | None:
    """Of all layers but those that have 16 bits, for the job's calls; None if nothing is to be learned."""
    if not learns_step_sizes(job):
        return None
    return _learner(job, len(job.own[0].prompts), calls)


def _learner(job: Job, prompts: int, calls: CallCounter) -> StepSizeLearner:
    layers = [spec.name for spec in job.calibration.layers if not spec.edge]
    return StepSizeLearner(job.denoiser, layers, job.recipe.guidance_scale, prompts, calls, job.ranks)


def learning_calls(job: Job) -> int:
    """Of the denoiser, for each that the pipeline makes."""
    return LEARNING_CALLS if learns_step_sizes(job) else 0


def learning_prompts(job: Job) -> int:
    """That a denoiser call has whose graph is held for its backward pass; 0 for none."""
    return min(LEARNED_PROMPTS, len(job.own[0].prompts)) if learns_step_sizes(job) else 0


@dataclass(frozen=True)
class RecordedCalls:
    """The denoiser calls of the first few prompts of full precision, for grids that serve all steps to be learned."""

    job: Job
    kept: list[DenoiserCall] = field(default_factory=list)

    def record(self, batch: int, call: DenoiserCall) -> None:
        prompts = learning_prompts(self.job)
        if batch == 0 and prompts:
            self.kept.append(of_first_prompts(call, len(self.job.own[0].prompts), prompts))

    def learned(
        self, denoiser: nn.Module, schedules: Mapping[str, ActivationSchedule]
    ) -> Mapping[str, ActivationSchedule]:
        """``schedules`` of one grid each; as they are where the recipe does not want them learned."""
        if not self.kept:
            return schedules
        grids = {name: schedule.grids[0] for name, schedule in schedules.items()}
        with self.job.costs.phase(STEP_SIZES) as calls:
            learner = _learner(self.job, learning_prompts(self.job), calls)
            found = learner.learned_static(denoiser, self.kept, grids, self.job.progress)
        return {name: ActivationSchedule.static(grid) for name, grid in found.items()}


def static_learning_phases(job: Job) -> tuple[PlannedPhase, ...]:
    """What :meth:`RecordedCalls.learned` will do."""
    prompts = learning_prompts(job)
    if not prompts:
        return ()
    batch = job.own[0][:prompts]
    return (PlannedPhase(STEP_SIZES, (batch,), STATIC_CALLS, on_rounded_weights=True, learning_prompts=prompts),)


def require_observed_step_sizes(job: Job) -> None:
    """Raises ValueError if the recipe wants step sizes learned, for a method that cannot."""
    if learns_step_sizes(job):
        raise ValueError(
            f"step_sizes is learned, but {job.recipe.method} never runs the quantized denoiser, or finds its ranges at "
            "run time; use pcr or best, or a method with one range for all steps"
        )
