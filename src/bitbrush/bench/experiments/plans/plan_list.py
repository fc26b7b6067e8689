"""Plans of `plans`: every scheduler with every number of steps, as far as a pipeline can run them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from diffusers import DiffusionPipeline

from bitbrush.network.families import denoiser_name
from bitbrush.sources.schedulers import STOCHASTIC, names_for, with_scheduler
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import PromptBatch, planned_timesteps

USUAL_STEPS = (10, 20, 50)
FEW_STEPS = (1, 2, 4)
"""Step counts for models distilled to few steps: those calibrated for at most twice the last count."""


@dataclass(frozen=True)
class Plan:
    """Plan of one cell, with the scheduler's class and the denoiser calls per image."""

    plan: SamplingPlan
    scheduler_class: str
    calls: int

    @property
    def name(self) -> str:
        """Short form, e.g. ``ddim-10``."""
        return f"{self.plan.scheduler}-{self.plan.steps}"


def list_plans(
    pipe: DiffusionPipeline, base: SamplingPlan, schedulers: Sequence[str], steps: Sequence[int], batch: PromptBatch
) -> tuple[Plan, ...]:
    """Lists every scheduler with every number of steps, at no denoiser call.

    Args:
        pipe: Full-precision pipeline.
        base: Plan with the guidance and further arguments of all plans.
        schedulers: Short names of schedulers; without, all that run and are deterministic (or else all that run).
        steps: Numbers of steps; without, the default ones.
        batch: Prompts with which the pipeline plans its steps.

    Returns:
        Plans, schedulers outermost.

    Raises:
        ValueError: The pipeline cannot run a scheduler, or not with these steps; the message names those that fit.
    """
    steps = steps or (FEW_STEPS if base.steps <= 2 * FEW_STEPS[-1] else USUAL_STEPS)
    if not schedulers:
        fitting = _fitting(pipe, base, batch)
        schedulers = [name for name in fitting if name not in STOCHASTIC] or fitting
    plans = []
    for name in schedulers:
        for count in steps:
            plan = replace(base, scheduler=name, steps=count)
            scheduled = with_scheduler(pipe, name)
            try:
                calls = len(_planned(scheduled, plan, batch))
            except (TypeError, ValueError, IndexError) as error:  # what pipelines and schedulers raise for one another
                raise ValueError(_refusal(pipe, base, name, count, batch, error)) from error
            plans.append(Plan(plan, type(scheduled.scheduler).__name__, calls))
    return tuple(plans)


def _planned(pipe: DiffusionPipeline, plan: SamplingPlan, batch: PromptBatch) -> tuple[float, ...]:
    return planned_timesteps(pipe, denoiser_name(pipe), plan, batch)


def _fitting(pipe: DiffusionPipeline, base: SamplingPlan, batch: PromptBatch) -> list[str]:
    """Lists the schedulers of the model's kind that can run the calibrated plan's steps."""
    fitting = []
    for name in names_for(pipe):
        try:
            _planned(with_scheduler(pipe, name), replace(base, scheduler=name), batch)
        except (TypeError, ValueError, IndexError):
            continue
        fitting.append(name)
    return fitting


def _refusal(
    pipe: DiffusionPipeline, base: SamplingPlan, name: str, steps: int, batch: PromptBatch, error: Exception
) -> str:
    fitting = _fitting(pipe, base, batch)
    kind = type(pipe).__name__
    if name in fitting:
        return f"{kind} cannot take {steps} steps of {name}: {error}; it takes {base.steps}, which were calibrated"
    return f"scheduler is {name!r}, which {kind} cannot run: {error}; those that fit are {', '.join(fitting)}"
