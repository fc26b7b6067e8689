"""Pipeline calls carried from denoiser call to denoiser call.

A :class:`Trajectory` is one prompt batch's own unmodified ``pipe(...)`` call, whose denoiser is a stand-in that hands
its inputs out and waits. The latents, the scheduler's state and whatever else the pipeline keeps stay where they are,
in the suspended call, so each step costs just the denoiser calls that are asked for.
"""

import copy
import functools
import hashlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from bitbrush.timeline.module_changes import NO_CHANGES, ChangeTracker, ModuleChanges
from bitbrush.timeline.plan import PipelineArgument, SamplingPlan, is_prompt_text
from bitbrush.timeline.suspension import Suspension
from bitbrush.timeline.tracker import timestep_reader


@dataclass(frozen=True)
class DenoiserCall:
    """The arguments of one denoiser call, its timestep, and the timesteps of all calls that the scheduler plans.

    ``timestep`` is what the denoiser is told. So are ``planned``, from the pipeline's first call on: an image-to-image
    pipeline skips the noisiest. A pipeline that calls twice per step has more calls than planned ones. ``changes``: of
    the denoiser's modules by the pipeline, e.g. attention processors.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    timestep: float
    planned: tuple[float, ...]
    changes: ModuleChanges = NO_CHANGES

    @property
    def step(self) -> int:
        """The index of the planned timestep nearest to the call's; of two equal ones the first."""
        return _nearest_index(self.planned, self.timestep)

    @torch.no_grad()
    def run(self, denoiser: nn.Module) -> Any:
        return self.forward(denoiser)

    def forward(self, denoiser: nn.Module) -> Any:
        """Runs the call with gradients as they are enabled."""
        with self.changes.made_to(denoiser):
            return denoiser(*self.args, **self.kwargs)


HALF_PRECISION = 2.0**-8
"""The relative error of a timestep that went through bfloat16."""

OWN_ARGUMENTS = frozenset(
    (
        "prompt",
        "num_inference_steps",
        "guidance_scale",
        "generator",
        "output_type",
        "return_dict",
        "num_images_per_prompt",
        "callback",
        "callback_steps",
        "callback_on_step_end",
        "callback_on_step_end_tensor_inputs",
    )
)
"""Arguments of a pipeline's call that follow from the plan and the batch, and are nobody else's to set."""

Trajectory: TypeAlias = Suspension[DenoiserCall, Any, Any]


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of one pipeline call, the seed of each one's initial noise, and what else each prompt comes with.

    ``inputs``: arguments of the pipeline's call that have one value per prompt, e.g. ``image`` and ``mask_image``.
    ``places``: of the prompts in the list that was divided into batches; by them lists of negative prompts are dealt.
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
    """Consecutive batches, each prompt with its :func:`noise_seeds`.

    ``inputs`` (:class:`PromptBatch`) of fewer values than prompts start over. Raises ValueError if one has none.
    """
    for name, values in (inputs or {}).items():
        if not len(values):
            raise ValueError(f"input {name!r} of the pipeline has no value; at least one is needed")
    own = {name: tuple(values[i % len(values)] for i in range(len(prompts))) for name, values in (inputs or {}).items()}
    everything = PromptBatch(tuple(prompts), noise_seeds(prompts, seed), own)
    return split(everything, batch_size)


def split(batch: PromptBatch, batch_size: int) -> list[PromptBatch]:
    """Consecutive parts of ``batch_size`` prompts, the last of what is left."""
    return [batch[begin : begin + batch_size] for begin in range(0, len(batch.prompts), batch_size)]


def join(batches: Sequence[PromptBatch]) -> PromptBatch:
    """All prompts of the batches, in their order."""
    inputs = {name: tuple(value for one in batches for value in one.inputs[name]) for name in batches[0].inputs}
    prompts = tuple(prompt for one in batches for prompt in one.prompts)
    places = tuple(place for one in batches for place in one.places)
    return PromptBatch(prompts, tuple(seed for one in batches for seed in one.seeds), inputs, places)


def noise_seeds(prompts: Sequence[str], seed: int) -> tuple[int, ...]:
    """The seed of each prompt's initial noise: a hash of ``seed``, the prompt, and how often it came before.

    So neither the batch size, nor the order, nor the number of prompts changes the noise of any of them.
    """
    seen: Counter[str] = Counter()
    seeds = []
    for prompt in prompts:
        digest = hashlib.sha256(f"{seed}/{seen[prompt]}/{prompt}".encode()).digest()
        seeds.append(int.from_bytes(digest[:6], "little"))
        seen[prompt] += 1
    return tuple(seeds)


def stand_in(denoiser: nn.Module, answer: Callable[..., Any]) -> nn.Module:
    """The denoiser in everything but its calls, which ``answer`` takes; attributes set on either are set on both."""
    kind = type(denoiser)

    @functools.wraps(kind.forward)
    def call(_: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return answer(*args, **kwargs)

    own = {"__call__": call, "forward": call, "__module__": kind.__module__, "__doc__": kind.__doc__}
    made: nn.Module = object.__new__(type(kind.__name__, (kind,), own))
    object.__setattr__(made, "__dict__", denoiser.__dict__)
    return made


def planned_from(scheduler: Any, first: float) -> tuple[float, ...]:
    """The timesteps of the scheduler's steps as the denoiser is told them, from that of its first call on.

    Pipelines hand on the scheduler's timesteps, or (FLUX and other flow matching models) their share of the training
    timesteps: whichever ``first`` is found among decides. Where it is found among both, the earlier step does, for it
    is the first call. Half precision may have rounded it. Raises ValueError if it is found in neither unit.
    """
    train = getattr(scheduler.config, "num_train_timesteps", None)
    units = [scheduler.timesteps] + ([scheduler.timesteps / train] if train else [])
    plans = [tuple(float(timestep) for timestep in unit) for unit in units]
    found = [(_nearest_index(plan, first), plan) for plan in plans]
    close = [(step, plan) for step, plan in found if abs(plan[step] - first) <= HALF_PRECISION * abs(first)]
    if not close:
        raise ValueError(
            f"the denoiser is called with timestep {first:g}, which is none of the {len(plans[0])} of its "
            f"{type(scheduler).__name__} ({plans[0][0]:g} to {plans[0][-1]:g}), nor a share of its training timesteps; "
            "a pipeline that counts its steps in another way cannot be calibrated"
        )
    step, plan = min(close, key=lambda one: one[0])
    return plan[step:]


def _nearest_index(timesteps: Sequence[float], timestep: float) -> int:
    return min(range(len(timesteps)), key=lambda step: abs(timesteps[step] - timestep))


def _clone(value: Any) -> Any:
    match value:
        case Tensor():
            return value.clone()
        case tuple() | list():
            return type(value)(_clone(item) for item in value)
        case dict():
            return {key: _clone(item) for key, item in value.items()}
        case _:
            return value


def start(
    pipe: Any, component: str, batch: PromptBatch, plan: SamplingPlan, *, output_type: str = "latent"
) -> Trajectory:
    """``pipe(batch)`` up to its first denoiser call; ``component`` names the denoiser, e.g. ``"unet"``.

    The result is what the pipeline returns for its own argument ``output_type``: the final latents, or pictures.
    """

    denoiser: nn.Module = getattr(pipe, component)
    timestep_of = timestep_reader(denoiser)

    def run(hand_out: Callable[[DenoiserCall], Any]) -> Any:
        own, tracker = copy.copy(pipe), ChangeTracker(denoiser)
        planned: tuple[float, ...] = ()

        def answer(*args: Any, **kwargs: Any) -> Any:
            nonlocal planned
            timestep = timestep_of(args, kwargs)
            planned = planned or planned_from(own.scheduler, timestep)
            changes = tracker.pause()
            try:
                # Cloned: the pipeline may reuse the memory of its latents while the call is kept.
                return hand_out(DenoiserCall(_clone(args), _clone(kwargs), timestep, planned, changes))
            finally:
                tracker.resume(changes)

        own.scheduler = copy.deepcopy(pipe.scheduler)
        setattr(own, component, stand_in(denoiser, answer))
        own.set_progress_bar_config(disable=True)
        try:
            return own(**call_arguments(pipe, batch, plan), output_type=output_type).images
        finally:
            tracker.pause()

    return Suspension(run)


def call_arguments(pipe: Any, batch: PromptBatch, plan: SamplingPlan) -> dict[str, Any]:
    """The arguments of ``pipe(...)``; guidance is left out where the pipeline has none.

    Raises ValueError, naming it, for an argument of the plan or an input of the batch that the pipeline does not take.
    """
    taken = inspect.signature(pipe.__call__).parameters
    given = [*dict(plan.arguments), *batch.inputs]
    wrong = [name for name in given if name not in taken or name in OWN_ARGUMENTS]
    if wrong or "prompt" not in taken:
        free = [name for name in taken if name not in OWN_ARGUMENTS and name != "kwargs"]
        raise ValueError(f"{type(pipe).__name__} cannot be given {[*wrong, 'prompt'][0]!r}; it takes {', '.join(free)}")
    further = {name: _argument_value(name, value, taken[name].annotation, batch) for name, value in plan.arguments}
    further |= {name: list(values) for name, values in batch.inputs.items()}
    arguments = {
        "prompt": list(batch.prompts),
        "num_inference_steps": plan.steps,
        "generator": [torch.Generator().manual_seed(seed) for seed in batch.seeds],
    }
    if "guidance_scale" in taken:
        arguments["guidance_scale"] = plan.guidance_scale
    return {**arguments, **further}


def _argument_value(name: str, value: PipelineArgument, annotation: Any, batch: PromptBatch) -> Any:
    """A value of a recipe as the pipeline's call takes it.

    Texts that accompany prompts (``negative_prompt``, ``prompt_2``) become a list with one per prompt: a single text
    serves all, several are dealt out in order and start over. Other lists are lists, or tuples where the call's
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
    """Trajectories of all batches, each at its first denoiser call; closed at the end whatever happens."""
    with ExitStack() as stack:
        yield [stack.enter_context(start(pipe, component, batch, plan)) for batch in batches]


def planned_timesteps(
    pipe: Any, component: str, plan: SamplingPlan, batch: PromptBatch | None = None
) -> tuple[float, ...]:
    """The timestep of every denoiser call of the plan, in order; costs no denoiser call.

    ``batch``: one of those to come, from whose first prompt the inputs are taken that the pipeline wants.
    """
    with start(pipe, component, batch[:1] if batch else PromptBatch(("",), (0,)), plan) as trajectory:
        return pending([trajectory])[0].planned


def lockstep(trajectories: Sequence[Trajectory]) -> Iterator[list[DenoiserCall]]:
    """Yields the calls that all trajectories wait with, step by step; each must be answered before the next step."""
    while waiting := pending(trajectories):
        yield waiting


def pending(trajectories: Sequence[Trajectory]) -> list[DenoiserCall]:
    """The denoiser calls all trajectories wait with, in their order; empty when all have ended.

    Raises RuntimeError if they are not at the same step: prompts must not change the number of steps.
    """
    calls = [trajectory.request for trajectory in trajectories if trajectory.request is not None]
    if calls and (len(calls) != len(trajectories) or len({call.timestep for call in calls}) > 1):
        raise RuntimeError(f"prompt batches disagree on the step: timesteps {[call.timestep for call in calls]}")
    return calls
