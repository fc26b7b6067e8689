"""The plans of `plans`: schedulers down, steps across, and whether a pipeline can run each."""

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
    """One cell's plan; ``scheduler_class`` and ``calls``: what the pipeline makes of it, denoiser calls a picture."""

    plan: SamplingPlan
    scheduler_class: str
    calls: int

    @property
    def name(self) -> str:
        return f"{self.plan.scheduler}-{self.plan.steps}"


def list_plans(
    pipe: DiffusionPipeline, base: SamplingPlan, schedulers: Sequence[str], steps: Sequence[int], batch: PromptBatch
) -> tuple[Plan, ...]:
    """Every scheduler with every number of steps, guidance and further arguments being those of ``base``.

    Without ``schedulers`` all that run and are deterministic (where none is, all that run); without ``steps`` the usual
    ones. Costs no denoiser call. Raises ValueError for a scheduler that does not fit, naming those that do, and for
    steps it cannot take.
    """
    steps = steps or (FEW_STEPS if base.steps <= 2 * FEW_STEPS[-1] else USUAL_STEPS)
    if not schedulers:
        fitting = _fitting(pipe, base, batch)
        schedulers = [name for name in fitting if name not in STOCHASTIC] or fitting
    made = []
    for name in schedulers:
        for count in steps:
            plan = replace(base, scheduler=name, steps=count)
            own = with_scheduler(pipe, name)
            try:
                calls = len(_planned(own, plan, batch))
            except (TypeError, ValueError, IndexError) as error:  # what pipelines and schedulers raise for one another
                raise ValueError(_refusal(pipe, base, name, count, batch, error)) from error
            made.append(Plan(plan, type(own.scheduler).__name__, calls))
    return tuple(made)


def _planned(pipe: DiffusionPipeline, plan: SamplingPlan, batch: PromptBatch) -> tuple[float, ...]:
    return planned_timesteps(pipe, denoiser_name(pipe), plan, batch)


def _fitting(pipe: DiffusionPipeline, base: SamplingPlan, batch: PromptBatch) -> list[str]:
    """Those of the model's kind that the pipeline can run the calibrated plan's steps with."""
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
