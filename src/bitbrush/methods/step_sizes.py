"""Learned step sizes as a stage: of which layers, and on which prompts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from bitbrush.calibration.step_sizes import (
    EPOCHS,
    LEARNED_PROMPTS,
    LEARNING_CALLS,
    LEARNING_TITLE,
    StepSizeLearner,
    of_first_prompts,
)
from bitbrush.methods.method import Job, PlannedPhase
from bitbrush.methods.recipe import StepSizes
from bitbrush.timeline.progress import PlannedWork
from bitbrush.timeline.schedule import ActivationSchedule
from bitbrush.timeline.trajectory import DenoiserCall

STEP_SIZES = "step_sizes"
ITERATION_COST = 3
"""Denoiser calls that an iteration, forward and back, is worth."""


def learning_prompts(job: Job) -> int:
    """That a denoiser call has whose graph is held for its backward pass; 0 for none."""
    return min(LEARNED_PROMPTS, len(job.own[0].prompts)) if job.recipe.step_sizes is StepSizes.LEARNED else 0


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
        """``schedules`` of one grid each; as they are where the recipe does not want them learned.

        Layers that have 16 bits do not learn.
        """
        if not self.kept:
            return schedules
        job, grids = self.job, {name: schedule.grids[0] for name, schedule in schedules.items()}
        layers = [spec.name for spec in job.calibration.layers if not spec.edge]
        with job.costs.phase(STEP_SIZES) as calls:
            learner = StepSizeLearner(
                job.denoiser, layers, job.recipe.guidance_scale, learning_prompts(job), calls, job.ranks
            )
            found = learner.learned(denoiser, self.kept, grids, job.progress)
        return {name: ActivationSchedule.static(grid) for name, grid in found.items()}


def static_learning_phases(job: Job) -> tuple[PlannedPhase, ...]:
    """What :meth:`RecordedCalls.learned` will do."""
    prompts = learning_prompts(job)
    if not prompts:
        return ()
    batch = job.own[0][:prompts]

    def works(calls: int) -> tuple[PlannedWork, ...]:
        return (PlannedWork(LEARNING_TITLE, EPOCHS * calls, ITERATION_COST * prompts),)

    return (
        PlannedPhase(
            STEP_SIZES,
            (batch,),
            LEARNING_CALLS,
            on_rounded_weights=True,
            learning_prompts=prompts,
            works_of=works,
        ),
    )


def require_observed_step_sizes(job: Job) -> None:
    """Raises ValueError if the recipe learns step sizes, for a method that has not one range for all steps."""
    if job.recipe.step_sizes is StepSizes.LEARNED:
        raise ValueError(
            f"step_sizes is learned, but {job.recipe.method} has not one range for all steps; leave it at observed, or "
            "use qdiffusion, ptq4dm, smoothquant or rtn"
        )
