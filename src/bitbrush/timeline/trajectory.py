"""Pipeline calls that advance from denoiser call to denoiser call.

A :class:`Trajectory` is the unmodified ``pipe(...)`` call of one prompt batch. A stand-in replaces its denoiser, hands
the inputs out and waits. The latents, the scheduler's state and everything else stay in the suspended call. So each
step costs only the denoiser calls that are requested.
"""

import copy
import functools
import hashlib
import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from bitbrush.timeline.module_changes import NO_CHANGES, ChangeTracker, ModuleChanges
from bitbrush.timeline.pipeline_call import require_callable
from bitbrush.timeline.plan import PipelineArgument, SamplingPlan, is_prompt_text
from bitbrush.timeline.suspension import Suspension
from bitbrush.timeline.tracker import timestep_reader


@dataclass(frozen=True)
class DenoiserCall:
    """Arguments of one denoiser call, its timestep, and the timesteps of all calls that the scheduler plans.

    ``timestep`` and ``planned`` are in the denoiser's unit. ``planned`` begins at the pipeline's first call, as an
    image-to-image pipeline skips the noisiest steps. A pipeline that calls twice per step has more calls than planned
    ones. ``changes`` are those that the pipeline made to the denoiser's modules, e.g. attention processors.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    timestep: float
    planned: tuple[float, ...]
    changes: ModuleChanges = NO_CHANGES

    @property
    def rows(self) -> int:
        """Number of samples: the length of the first tensor with more than one dimension, or of a list of tensors."""
        return len(self._sample)

    @property
    def _sample(self) -> Tensor | list[Tensor]:
        sample: Tensor | list[Tensor] = next(value for value in (*self.args, *self.kwargs.values()) if _is_batch(value))
        return sample

    def is_of_one_step_with(self, other: "DenoiserCall") -> bool:
        """Returns whether both calls have the same timestep and noisy sample, e.g. as two halves of guidance."""
        ours, theirs = list(self._sample), list(other._sample)
        same = len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))
        return same and self.timestep == other.timestep

    @property
    def step(self) -> int:
        """Index of the planned timestep nearest to the call's; of two equal ones, the first."""
        return _nearest_index(self.planned, self.timestep)

    @torch.no_grad()
    def run(self, denoiser: nn.Module) -> Any:
        """Runs the call on ``denoiser`` without gradients."""
        return self.forward(denoiser)

    def forward(self, denoiser: nn.Module) -> Any:
        """Runs the call on ``denoiser`` with gradients as they are enabled."""
        with self.changes.made_to(denoiser):
            return denoiser(*self.args, **self.kwargs)


def _is_batch(value: Any) -> bool:
    return value.dim() > 1 if isinstance(value, Tensor) else isinstance(value, list)


def prediction(output: Any) -> Tensor:
    """Returns what a denoiser call predicts, (rows, ...); Z-Image's output is a list with a tensor for each row."""
    first: Tensor | list[Tensor] = output[0]
    return torch.stack(first) if isinstance(first, list) else first


HALF_PRECISION = 2.0**-8
"""Relative error of a timestep that was rounded to bfloat16."""

Trajectory: TypeAlias = Suspension[DenoiserCall, Any, Any]


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of one pipeline call, with the seed of each prompt's initial noise and further inputs.

    ``inputs`` are arguments of the pipeline's call with one value per prompt, e.g. ``image`` and ``mask_image``.
    ``places`` are the prompts' indices in the list that was divided into batches. They select the negative prompts of a
    list.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    inputs: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    places: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.places:
            object.__setattr__(self, "places", tuple(range(len(self.prompts))))

    def __getitem__(self, rows: slice) -> "PromptBatch":
        inputs = {name: values[rows] for name, values in self.inputs.items()}
        return PromptBatch(self.prompts[rows], self.seeds[rows], inputs, self.places[rows])


def prompt_batches(
    prompts: Sequence[str], seed: int, batch_size: int, *, inputs: Mapping[str, Sequence[Any]] | None = None
) -> list[PromptBatch]:
    """Divides prompts into consecutive batches and gives each prompt its seed from :func:`noise_seeds`.

    Args:
        prompts: All prompts.
        seed: Base of the noise seeds.
        batch_size: Prompts per batch.
        inputs: Further inputs of each prompt, see :class:`PromptBatch`. If they are fewer than the prompts, they
            repeat.

    Raises:
        ValueError: An input has no values.
    """
    for name, values in (inputs or {}).items():
        if not len(values):
            raise ValueError(f"input {name!r} of the pipeline has no value; at least one is needed")
    prompt_inputs = {
        name: tuple(values[i % len(values)] for i in range(len(prompts))) for name, values in (inputs or {}).items()
    }
    everything = PromptBatch(tuple(prompts), noise_seeds(prompts, seed), prompt_inputs)
    return split(everything, batch_size)


def split(batch: PromptBatch, batch_size: int) -> list[PromptBatch]:
    """Splits a batch into consecutive parts of ``batch_size`` prompts; the last part has the remainder."""
    return [batch[begin : begin + batch_size] for begin in range(0, len(batch.prompts), batch_size)]


def join(batches: Sequence[PromptBatch]) -> PromptBatch:
    """Joins batches into one, in their order."""
    inputs = {name: tuple(value for batch in batches for value in batch.inputs[name]) for name in batches[0].inputs}
    prompts = tuple(prompt for batch in batches for prompt in batch.prompts)
    places = tuple(place for batch in batches for place in batch.places)
    return PromptBatch(prompts, tuple(seed for batch in batches for seed in batch.seeds), inputs, places)


def noise_seeds(prompts: Sequence[str], seed: int) -> tuple[int, ...]:
    """Derives the seed of each prompt's initial noise: a hash of ``seed``, the prompt, and its earlier occurrences.

    So neither batch size, nor order, nor number of prompts changes the noise of any prompt.
    """
    occurrences: Counter[str] = Counter()
    seeds = []
    for prompt in prompts:
        digest = hashlib.sha256(f"{seed}/{occurrences[prompt]}/{prompt}".encode()).digest()
        seeds.append(int.from_bytes(digest[:6], "little"))
        occurrences[prompt] += 1
    return tuple(seeds)


def stand_in(denoiser: nn.Module, answer: Callable[..., Any]) -> nn.Module:
    """Returns an object that equals the denoiser except in its calls, which ``answer`` receives.

    Attributes set on either are set on both.
    """
    kind = type(denoiser)

    @functools.wraps(kind.forward)
    def call(_: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return answer(*args, **kwargs)

    attributes = {"__call__": call, "forward": call, "__module__": kind.__module__, "__doc__": kind.__doc__}
    substitute: nn.Module = object.__new__(type(kind.__name__, (kind,), attributes))
    object.__setattr__(substitute, "__dict__", denoiser.__dict__)
    return substitute


def planned_from(scheduler: Any, first: float) -> tuple[float, ...]:
    """Returns the timesteps of the scheduler's steps in the denoiser's unit, from its first call on.

    Pipelines pass the scheduler's timesteps, their fraction of the training timesteps (FLUX and other flow-matching
    models), or one less this fraction (Z-Image, Lumina 2). The unit is the one in which ``first`` is found. If several
    contain it, the earliest step decides, because it is the first call. ``first`` may be rounded to half precision.

    Args:
        scheduler: The pipeline's scheduler, with its timesteps set.
        first: Timestep of the first denoiser call.

    Raises:
        ValueError: ``first`` is found in no unit.
    """
    train = getattr(scheduler.config, "num_train_timesteps", None)
    fraction = scheduler.timesteps / (train or math.inf)
    counted = train and float(scheduler.timesteps[0]) > 2  # SANA-Sprint's are radians
    units = [scheduler.timesteps] + ([fraction, 1 - fraction] if counted else [])
    plans = [tuple(float(timestep) for timestep in unit) for unit in units]
    candidates = [(_nearest_index(plan, first), plan) for plan in plans]
    close = [(step, plan) for step, plan in candidates if abs(plan[step] - first) <= HALF_PRECISION * abs(first)]
    if not close:
        raise ValueError(
            f"the denoiser is called with timestep {first:g}, which is none of the {len(plans[0])} of its "
            f"{type(scheduler).__name__} ({plans[0][0]:g} to {plans[0][-1]:g}), nor a fraction of its training "
            "timesteps; a pipeline that counts its steps in another way cannot be calibrated"
        )
    step, plan = min(close, key=lambda candidate: candidate[0])
    return plan[step:]


def _nearest_index(timesteps: Sequence[float], timestep: float) -> int:
    return min(range(len(timesteps)), key=lambda step: abs(timesteps[step] - timestep))


def cloned(value: Any) -> Any:
    """Copies the tensors in ``value``, however nested."""
    match value:
        case Tensor():
            return value.clone()
        case tuple() | list():
            return type(value)(cloned(item) for item in value)
        case dict():
            return {key: cloned(item) for key, item in value.items()}
        case _:
            return value


def start(
    pipe: Any, component: str, batch: PromptBatch, plan: SamplingPlan, *, output_type: str = "latent"
) -> Trajectory:
    """Starts ``pipe(batch)`` and suspends it at its first denoiser call.

    Args:
        pipe: Pipeline.
        component: Name of its denoiser, e.g. ``"unet"``.
        batch: Prompts of the call.
        plan: Steps, guidance, scheduler and arguments.
        output_type: The pipeline's argument of that name: ``"latent"`` for the final latents, else images.

    Returns:
        The suspended call; its result is that of :func:`generated_images`.
    """
    denoiser: nn.Module = getattr(pipe, component)
    timestep_of = timestep_reader(denoiser)

    def run(hand_out: Callable[[DenoiserCall], Any]) -> Any:
        pipe_copy, tracker = copy.copy(pipe), ChangeTracker(denoiser)
        planned: tuple[float, ...] = ()

        def answer(*args: Any, **kwargs: Any) -> Any:
            nonlocal planned
            timestep = timestep_of(args, kwargs)
            planned = planned or planned_from(pipe_copy.scheduler, timestep)
            changes = tracker.pause()
            try:
                # Cloned, because the pipeline may reuse the memory of its latents while the call is suspended.
                return hand_out(DenoiserCall(cloned(args), cloned(kwargs), timestep, planned, changes))
            finally:
                tracker.resume(changes)

        pipe_copy.scheduler = copy.deepcopy(pipe.scheduler)
        setattr(pipe_copy, component, stand_in(denoiser, answer))
        pipe_copy.set_progress_bar_config(disable=True)
        try:
            return generated_images(pipe_copy(**call_arguments(pipe, batch, plan), output_type=output_type))
        finally:
            tracker.pause()

    return Suspension(run)


def generated_images(output: Any) -> Any:
    """Returns a pipeline's images or latents; the frames (N, T, H, W, 3) of a video become one image, side by side."""
    if hasattr(output, "images"):
        return output.images
    frames = output.frames
    is_latent = isinstance(frames, Tensor)
    return frames if is_latent else np.concatenate(list(frames.swapaxes(0, 1)), axis=2)


def call_arguments(pipe: Any, batch: PromptBatch, plan: SamplingPlan) -> dict[str, Any]:
    """Returns the arguments of ``pipe(...)``; guidance is left out if the pipeline has none.

    Raises:
        ValueError: The pipeline does not take an argument of the plan, its value, or an input of the batch; or its
            scheduler has fewer steps. The message names it.
    """
    require_callable(type(pipe), getattr(pipe, "scheduler", None), plan, batch.inputs)
    parameters = inspect.signature(pipe.__call__).parameters
    further = {name: _argument_value(name, value, parameters[name].annotation, batch) for name, value in plan.arguments}
    further |= {name: list(values) for name, values in batch.inputs.items()}
    arguments = {
        "prompt": list(batch.prompts),
        "num_inference_steps": plan.steps,
        "generator": [torch.Generator().manual_seed(seed) for seed in batch.seeds],
    }
    if "guidance_scale" in parameters:
        arguments["guidance_scale"] = plan.guidance_scale
    return {**arguments, **further}


def _argument_value(name: str, value: PipelineArgument, annotation: Any, batch: PromptBatch) -> Any:
    """Converts a value of a recipe to the type that the pipeline's call takes.

    Texts that accompany prompts (``negative_prompt``, ``prompt_2``) become a list with one per prompt. A single text
    serves all prompts; several are assigned in order and repeat. Other lists stay lists, or become tuples if the call's
    signature says so, as for SDXL's ``original_size``.
    """
    if is_prompt_text(name) and value is not None:
        texts = value if isinstance(value, tuple) else (value,)
        return [texts[place % len(texts)] for place in batch.places]
    return list(value) if isinstance(value, tuple) and "tuple" not in str(annotation).lower() else value


@contextmanager
def carried(
    pipe: Any, component: str, batches: Sequence[PromptBatch], plan: SamplingPlan
) -> Iterator[list[Trajectory]]:
    """Yields trajectories of all batches, each at its first denoiser call, and closes them at the end."""
    with ExitStack() as stack:
        yield [stack.enter_context(start(pipe, component, batch, plan)) for batch in batches]


def planned_timesteps(
    pipe: Any, component: str, plan: SamplingPlan, batch: PromptBatch | None = None
) -> tuple[float, ...]:
    """Returns the timestep of every denoiser call of the plan, in order; costs no denoiser call.

    Args:
        pipe: Pipeline.
        component: Name of its denoiser.
        plan: Sampling plan.
        batch: A batch of the run; its first prompt supplies the inputs that the pipeline requires.

    Raises:
        ValueError: The pipeline fails on the plan's arguments, in whatever way.
    """
    try:
        with start(pipe, component, batch[:1] if batch else PromptBatch(("",), (0,)), plan) as trajectory:
            return pending([trajectory])[0].planned
    except torch.OutOfMemoryError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        if not plan.arguments:
            raise
        arguments = ", ".join(f"{name}={value!r}" for name, value in plan.arguments)
        raise ValueError(
            f"{type(pipe).__name__} cannot be called with the pipeline arguments {arguments} "
            f"({type(error).__name__}: {error}); change them or leave them out"
        ) from error


def lockstep(trajectories: Sequence[Trajectory]) -> Iterator[list[DenoiserCall]]:
    """Yields the requests of all trajectories, step by step; each must be answered before the next step."""
    while calls := pending(trajectories):
        yield calls


def pending(trajectories: Sequence[Trajectory]) -> list[DenoiserCall]:
    """Returns the denoiser calls that all trajectories request, in their order; empty when all have ended.

    Raises:
        RuntimeError: The trajectories are not at the same step: prompts must not change the number of steps.
    """
    calls = [trajectory.request for trajectory in trajectories if trajectory.request is not None]
    if calls and (len(calls) != len(trajectories) or len({call.timestep for call in calls}) > 1):
        raise RuntimeError(f"prompt batches disagree on the step: timesteps {[call.timestep for call in calls]}")
    return calls
