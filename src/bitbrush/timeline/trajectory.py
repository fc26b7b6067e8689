"""Pipeline calls carried from denoiser call to denoiser call.

A :class:`Trajectory` is one prompt batch's own unmodified ``pipe(...)`` call, whose denoiser is a stand-in that hands
its inputs out and waits. The latents, the scheduler's state and whatever else the pipeline keeps stay where they are,
in the suspended call, so each step costs just the denoiser calls that are asked for.
"""

import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from bitbrush.timeline.clock import timestep_reader
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.suspension import Suspension


@dataclass(frozen=True)
class DenoiserCall:
    """The arguments of one denoiser call, its timestep, and the timesteps of all calls that the scheduler plans."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    timestep: float
    planned: tuple[float, ...]

    @torch.no_grad()
    def run(self, denoiser: nn.Module) -> Any:
        return denoiser(*self.args, **self.kwargs)


Trajectory: TypeAlias = Suspension[DenoiserCall, Any, Any]


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of one pipeline call and the seed of each one's initial noise."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]


def prompt_batches(prompts: Sequence[str], seed: int, batch_size: int) -> list[PromptBatch]:
    """Consecutive batches, each prompt with its :func:`noise_seeds`."""
    seeds = noise_seeds(prompts, seed)
    return [
        PromptBatch(tuple(prompts[begin : begin + batch_size]), seeds[begin : begin + batch_size])
        for begin in range(0, len(prompts), batch_size)
    ]


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


class _StandIn(nn.Module):
    """Looks like the denoiser, but hands its calls out. Everything except calling is the denoiser's own."""

    def __init__(self, denoiser: nn.Module, scheduler: Any, hand_out: Callable[[DenoiserCall], Any]) -> None:
        super().__init__()
        # Not registered as a submodule: the stand-in owns no parameters.
        object.__setattr__(self, "_denoiser", denoiser)
        self._scheduler = scheduler
        self._hand_out = hand_out
        self._timestep_of = timestep_reader(denoiser)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_denoiser"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # Cloned: the pipeline may reuse the memory of its latents while the call is kept.
        planned = tuple(float(timestep) for timestep in self._scheduler.timesteps)
        return self._hand_out(DenoiserCall(_clone(args), _clone(kwargs), self._timestep_of(args, kwargs), planned))


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

    def call(hand_out: Callable[[DenoiserCall], Any]) -> Any:
        own = copy.copy(pipe)
        own.scheduler = copy.deepcopy(pipe.scheduler)
        setattr(own, component, _StandIn(getattr(pipe, component), own.scheduler, hand_out))
        own.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
        output = own(
            list(batch.prompts),
            num_inference_steps=plan.steps,
            guidance_scale=plan.guidance_scale,
            generator=generators,
            output_type=output_type,
        )
        return output.images

    return Suspension(call)


@contextmanager
def carried(
    pipe: Any, component: str, batches: Sequence[PromptBatch], plan: SamplingPlan
) -> Iterator[list[Trajectory]]:
    """Trajectories of all batches, each at its first denoiser call; closed at the end whatever happens."""
    with ExitStack() as stack:
        yield [stack.enter_context(start(pipe, component, batch, plan)) for batch in batches]


def planned_timesteps(pipe: Any, component: str, plan: SamplingPlan) -> tuple[float, ...]:
    """The timestep of every denoiser call of the plan, in order; costs no denoiser call."""
    with start(pipe, component, PromptBatch(("",), (0,)), plan) as trajectory:
        return pending([trajectory])[0].planned


def pending(trajectories: Sequence[Trajectory]) -> list[DenoiserCall]:
    """The denoiser calls all trajectories wait with, in their order; empty when all have ended.

    Raises RuntimeError if they are not at the same step: prompts must not change the number of steps.
    """
    calls = [trajectory.request for trajectory in trajectories if trajectory.request is not None]
    if calls and (len(calls) != len(trajectories) or len({call.timestep for call in calls}) > 1):
        raise RuntimeError(f"prompt batches disagree on the step: timesteps {[call.timestep for call in calls]}")
    return calls
