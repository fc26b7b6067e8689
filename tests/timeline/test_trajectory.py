"""Carried pipeline calls: the pipeline's own results, advanced call by call."""

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import (
    DenoiserCall,
    PromptBatch,
    call_arguments,
    carried,
    join,
    noise_seeds,
    pending,
    planned_from,
    planned_timesteps,
    prompt_batches,
    split,
    start,
)

PLAN = SamplingPlan(steps=5)
PROMPTS = ("a red cat", "two blue dogs on the left", "a green tree", "a cat", "a house")


def directly(pipe: StableDiffusionPipeline, batch: PromptBatch, plan: SamplingPlan) -> Tensor:
    """The latents of a user's own call."""
    latents: Tensor = pipe(
        list(batch.prompts),
        num_inference_steps=plan.steps,
        guidance_scale=plan.guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in batch.seeds],
        output_type="latent",
    ).images
    return latents


def advance(pipe: StableDiffusionPipeline, batches: Sequence[PromptBatch], plan: SamplingPlan) -> list[Tensor]:
    """The same, carried from call to call."""
    with carried(pipe, "unet", batches, plan) as trajectories:
        while calls := pending(trajectories):
            for trajectory, call in zip(trajectories, calls, strict=True):
                trajectory.answer(call.run(pipe.unet))
        results = [trajectory.result for trajectory in trajectories]
    assert all(result is not None for result in results)
    return [result for result in results if result is not None]


@pytest.mark.parametrize(
    ("scheduler", "guidance_scale"),
    [
        ("PNDMScheduler", 7.5),
        ("PNDMScheduler", 1.0),
        ("DDIMScheduler", 3.0),
        ("EulerDiscreteScheduler", 7.5),
        ("EulerAncestralDiscreteScheduler", 7.5),
        ("HeunDiscreteScheduler", 7.5),
        ("DPMSolverMultistepScheduler", 7.5),
    ],
)
def test_same_latents_as_the_pipelines_own_call(
    tiny_pipe: StableDiffusionPipeline, scheduler: str, guidance_scale: float
) -> None:
    tiny_pipe.scheduler = getattr(diffusers, scheduler).from_config(tiny_pipe.scheduler.config)
    plan = SamplingPlan(steps=4, guidance_scale=guidance_scale)
    batches = prompt_batches(PROMPTS[:3], 0, 2)
    expected = [directly(tiny_pipe, batch, plan) for batch in batches]
    for latents, wanted in zip(advance(tiny_pipe, batches, plan), expected, strict=True):
        assert torch.equal(latents, wanted)
    assert expected[0].shape == (2, 4, 8, 8)
    assert expected[0].isfinite().all()


def test_the_pipeline_is_left_as_it_was(tiny_pipe: StableDiffusionPipeline) -> None:
    batch = prompt_batches(PROMPTS[:2], 0, 2)[0]
    before = directly(tiny_pipe, batch, PLAN)
    parts, config = dict(tiny_pipe.components), dict(tiny_pipe.config)
    timesteps = tiny_pipe.scheduler.timesteps.clone()
    with carried(tiny_pipe, "unet", [batch], SamplingPlan(steps=3)) as (trajectory,):
        assert all(tiny_pipe.components[name] is part for name, part in parts.items())
        trajectory.answer(pending([trajectory])[0].run(tiny_pipe.unet))
        between = directly(tiny_pipe, batch, PLAN)
    assert all(tiny_pipe.components[name] is part for name, part in parts.items())
    assert dict(tiny_pipe.config) == config
    assert torch.equal(tiny_pipe.scheduler.timesteps, timesteps)
    assert torch.equal(between, before)
    assert torch.equal(directly(tiny_pipe, batch, PLAN), before)


def test_calls_keep_what_they_were_called_with(tiny_pipe: StableDiffusionPipeline) -> None:
    seen: list[dict[str, Any]] = []
    with tiny_pipe.unet.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append({"sample": args[0].clone(), "timestep": float(args[1]), **kwargs}),
        with_kwargs=True,
    ):
        directly(tiny_pipe, prompt_batches(PROMPTS[:2], 0, 2)[0], PLAN)
    calls = []
    with carried(tiny_pipe, "unet", prompt_batches(PROMPTS[:2], 0, 2), PLAN) as trajectories:
        while waiting := pending(trajectories):
            calls += waiting
            trajectories[0].answer(waiting[0].run(tiny_pipe.unet))
    assert len(calls) == len(seen) == 6
    for call, own in zip(calls, seen, strict=True):
        assert call.timestep == own["timestep"]
        assert torch.equal(call.args[0], own["sample"])
        assert torch.equal(call.kwargs["encoder_hidden_states"], own["encoder_hidden_states"])
        assert call.kwargs.keys() == own.keys() - {"sample", "timestep"}


def test_pndm_calls_once_per_step_and_the_second_step_twice(tiny_pipe: StableDiffusionPipeline) -> None:
    visited = []
    with carried(tiny_pipe, "unet", prompt_batches(PROMPTS[:2], 0, 1), PLAN) as trajectories:
        while calls := pending(trajectories):
            assert len(calls) == 2
            visited.append(calls[0].timestep)
            assert {call.planned for call in calls} == {calls[0].planned}
            for trajectory, call in zip(trajectories, calls, strict=True):
                trajectory.answer(call.run(tiny_pipe.unet))
        planned = calls[0].planned if calls else planned_timesteps(tiny_pipe, "unet", PLAN)
    assert tuple(visited) == planned
    assert len(visited) == PLAN.steps + 1
    assert len(set(visited)) == PLAN.steps
    assert Counter(visited)[visited[1]] == 2
    assert visited == sorted(visited, reverse=True)


def test_planned_timesteps_cost_no_call(tiny_pipe: StableDiffusionPipeline) -> None:
    calls: list[None] = []
    tiny_pipe.unet.register_forward_pre_hook(lambda *_: calls.append(None))
    threads = threading.active_count()
    planned = planned_timesteps(tiny_pipe, "unet", SamplingPlan(steps=50))
    assert len(planned) == 51
    assert not calls
    assert threading.active_count() == threads


def test_batches_at_unlike_steps_are_refused(tiny_pipe: StableDiffusionPipeline) -> None:
    with carried(tiny_pipe, "unet", prompt_batches(PROMPTS[:2], 0, 1), PLAN) as trajectories:
        trajectories[0].answer(pending(trajectories)[0].run(tiny_pipe.unet))
        with pytest.raises(RuntimeError, match=r"prompt batches disagree on the step: timesteps \[601\.0, 801\.0\]"):
            pending(trajectories)
        while call := trajectories[0].request:
            trajectories[0].answer(call.run(tiny_pipe.unet))
        with pytest.raises(RuntimeError, match=r"timesteps \[801\.0\]"):
            pending(trajectories)


def test_nothing_is_left_behind_when_it_ends_early(tiny_pipe: StableDiffusionPipeline) -> None:
    class Interrupted(Exception):
        pass

    def interrupt() -> None:
        with carried(tiny_pipe, "unet", prompt_batches(PROMPTS, 0, 2), PLAN) as trajectories:
            trajectories[0].answer(pending(trajectories)[0].run(tiny_pipe.unet))
            raise Interrupted

    threads = threading.active_count()
    with pytest.raises(Interrupted):
        interrupt()
    assert threading.active_count() == threads


def test_what_the_pipeline_refuses_is_raised_here(tiny_pipe: StableDiffusionPipeline) -> None:
    with pytest.raises(ValueError, match="list of generators of length 1"):
        start(tiny_pipe, "unet", PromptBatch(("a cat", "a dog"), (0,)), PLAN)


def initial_noise(pipe: StableDiffusionPipeline, batches: Sequence[PromptBatch]) -> dict[str, Tensor]:
    noise = {}
    with carried(pipe, "unet", batches, SamplingPlan(steps=1, guidance_scale=1.0)) as trajectories:
        for batch, call in zip(batches, pending(trajectories), strict=True):
            noise |= dict(zip(batch.prompts, call.args[0], strict=True))
    return noise


def test_neither_batch_size_nor_order_nor_number_changes_the_noise(tiny_pipe: StableDiffusionPipeline) -> None:
    expected = initial_noise(tiny_pipe, prompt_batches(PROMPTS, 0, 5))
    assert len({tuple(noise.flatten().tolist()) for noise in expected.values()}) == len(PROMPTS)
    for prompts, batch_size in [(PROMPTS, 1), (PROMPTS, 2), (PROMPTS[::-1], 3), (PROMPTS[2:], 5), (PROMPTS, 100)]:
        noise = initial_noise(tiny_pipe, prompt_batches(prompts, 0, batch_size))
        assert all(torch.equal(noise[prompt], expected[prompt]) for prompt in prompts)
    other = initial_noise(tiny_pipe, prompt_batches(PROMPTS, 1, 5))
    assert not any(torch.equal(other[prompt], expected[prompt]) for prompt in PROMPTS)


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=12), st.integers(1, 13), st.integers(0, 3))
def test_batches_hold_every_prompt_once_and_in_order(prompts: list[str], batch_size: int, seed: int) -> None:
    batches = prompt_batches(prompts, seed, batch_size)
    assert [prompt for batch in batches for prompt in batch.prompts] == prompts
    assert tuple(s for batch in batches for s in batch.seeds) == noise_seeds(prompts, seed)
    assert all(len(batch.prompts) == len(batch.seeds) == batch_size for batch in batches[:-1])
    assert 0 < len(batches[-1].prompts) <= batch_size


@given(st.lists(st.text(max_size=3), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_seeds_follow_the_prompt(prompts: list[str], random: Any) -> None:
    seeds = noise_seeds(prompts, 0)
    assert len(set(seeds)) == len(prompts)  # a prompt that comes twice makes two images
    shuffled = random.sample(prompts, len(prompts))
    assert Counter(zip(shuffled, noise_seeds(shuffled, 0), strict=True)) == Counter(zip(prompts, seeds, strict=True))
    assert noise_seeds([*prompts, "another"], 0)[:-1] == seeds
    assert set(noise_seeds(prompts, 1)).isdisjoint(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


class Scheduler:
    """What is looked at of one."""

    def __init__(self, timesteps: Sequence[float], train: int | None = 1000) -> None:
        self.timesteps = torch.tensor(timesteps)
        self.config = SimpleNamespace(**({"num_train_timesteps": train} if train else {}))


@pytest.mark.parametrize(
    ("first", "planned"),
    [
        (981.0, (981.0, 501.0, 501.0, 1.0, 0.0)),
        (501.0, (501.0, 501.0, 1.0, 0.0)),  # an image-to-image pipeline starts half-way
        (0.0, (0.0,)),
        (980.0, (981.0, 501.0, 501.0, 1.0, 0.0)),  # 981 in bfloat16
        (0.981, (0.981, 0.501, 0.501, 0.001, 0.0)),
        (0.501, (0.501, 0.501, 0.001, 0.0)),
        (0.019, (0.019, 0.499, 0.499, 0.999, 1.0)),  # Z-Image and Lumina 2 pass one less the fraction
        (0.499, (0.499, 0.499, 0.999, 1.0)),
    ],
)
def test_planned_timesteps_are_those_that_the_denoiser_is_told(first: float, planned: tuple[float, ...]) -> None:
    assert planned_from(Scheduler([981.0, 501.0, 501.0, 1.0, 0.0]), first) == pytest.approx(planned)


def test_a_pipeline_that_begins_at_zero_counts_upwards() -> None:
    assert planned_from(Scheduler([1000.0, 750.0, 0.0]), 0.0) == (0.0, 0.25, 1.0)


def test_of_two_units_the_one_of_the_earlier_step() -> None:
    """With a step for every training timestep, 1.0 is the first share as well as the last but one timestep."""
    assert planned_from(Scheduler([1000.0, 999.0, 2.0, 1.0]), 1.0)[0] == 1.0
    assert len(planned_from(Scheduler([1000.0, 999.0, 2.0, 1.0]), 1.0)) == 4


@pytest.mark.parametrize(("first", "train"), [(400.0, 1000), (0.3, 1000), (0.981, None)])
def test_another_way_of_counting_is_refused(first: float, train: int | None) -> None:
    with pytest.raises(ValueError, match=f"timestep {first:g}, which is none of the 2 of its Scheduler .981 to 501."):
        planned_from(Scheduler([981.0, 501.0], train), first)


def test_radians_are_no_training_timesteps() -> None:
    """SANA-Sprint passes a trigonometric function of them."""
    with pytest.raises(ValueError, match="timestep 1, which is none of the 3"):
        planned_from(Scheduler([1.5708, 1.3, 0.0]), 1.0)


def test_inputs_go_with_their_prompts() -> None:
    batches = prompt_batches(PROMPTS, 0, 2, inputs={"image": ["p", "q"], "strength": [1, 2, 3, 4, 5, 6]})
    assert [batch.inputs["image"] for batch in batches] == [("p", "q"), ("p", "q"), ("p",)]
    assert [value for batch in batches for value in batch.inputs["strength"]] == [1, 2, 3, 4, 5]
    whole = join(batches)
    assert whole == prompt_batches(PROMPTS, 0, 100, inputs={"image": "pqpqp", "strength": range(1, 6)})[0]
    assert split(whole, 2) == batches
    assert whole[:2] == batches[0]
    with pytest.raises(ValueError, match="input 'image' of the pipeline has no value"):
        prompt_batches(PROMPTS, 0, 2, inputs={"image": []})


def test_a_pipeline_is_called_with_what_it_takes(tiny_pipe: StableDiffusionPipeline) -> None:
    (batch,) = prompt_batches(PROMPTS[:2], 0, 2, inputs={"negative_prompt": ["blue", "red"]})
    arguments = call_arguments(tiny_pipe, batch, SamplingPlan(3, 2.0, arguments=(("height", 24), ("width", 16))))
    assert arguments.pop("generator")[1].initial_seed() == batch.seeds[1]
    assert arguments == {
        "prompt": list(PROMPTS[:2]),
        "num_inference_steps": 3,
        "guidance_scale": 2.0,
        "height": 24,
        "width": 16,
        "negative_prompt": ["blue", "red"],
    }

    class Unguided:
        def __call__(self, prompt: str, num_inference_steps: int, generator: object) -> None: ...

    assert "guidance_scale" not in call_arguments(Unguided(), PromptBatch(("a cat",), (0,)), PLAN)


class Recorded:
    """A pipeline's call with the annotations that diffusers' pipelines have."""

    def __call__(
        self,
        prompt: str | list[str],
        num_inference_steps: int,
        generator: object,
        prompt_2: str | list[str] | None = None,
        negative_prompt: str = "",
        negative_prompt_2: str | list[str] | None = None,
        sigmas: list[float] | None = None,
        original_size: tuple[int, int] | None = None,
        editing_prompt: str | list[str] | None = None,
    ) -> None: ...


@pytest.mark.parametrize("name", ["prompt_2", "negative_prompt", "negative_prompt_2"])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("texts", ["blue", ("blue",), ("a", "b", "c")])
def test_texts_that_accompany_prompts_are_dealt_to_them(
    name: str, batch_size: int, texts: str | tuple[str, ...]
) -> None:
    """The same to the same prompts, however these are divided, joined, and shared by processes."""
    plan = SamplingPlan(arguments=((name, texts),))
    batches = prompt_batches(PROMPTS, 0, batch_size)
    dealt = [text for batch in batches for text in call_arguments(Recorded(), batch, plan)[name]]
    cycle = (texts,) if isinstance(texts, str) else texts
    assert dealt == [cycle[i % len(cycle)] for i in range(len(PROMPTS))]
    assert call_arguments(Recorded(), join(batches), plan)[name] == dealt
    assert call_arguments(Recorded(), join(batches)[3:], plan)[name] == dealt[3:]


def test_other_values_stay_one_for_all_prompts() -> None:
    arguments = (("sigmas", (14.0, 7.0)), ("original_size", (64, 32)), ("editing_prompt", ("hat", "coat")))
    (batch,) = prompt_batches(PROMPTS[:3], 0, 3)
    given = call_arguments(Recorded(), batch, SamplingPlan(arguments=(*arguments, ("negative_prompt", None))))
    assert given["sigmas"] == [14.0, 7.0]
    assert given["original_size"] == (64, 32)
    assert given["editing_prompt"] == ["hat", "coat"]
    assert given["negative_prompt"] is None


@pytest.mark.parametrize("name", ["prompt", "strength", "generator", "num_inference_steps", "callback_on_step_end"])
def test_a_pipeline_is_not_called_with_anything_else(tiny_pipe: StableDiffusionPipeline, name: str) -> None:
    batch = PromptBatch(("a cat",), (0,))
    with pytest.raises(ValueError, match=f"StableDiffusionPipeline cannot be given '{name}'; it takes height, width"):
        call_arguments(tiny_pipe, batch, SamplingPlan(arguments=((name, 1),)))
    with pytest.raises(ValueError, match=f"cannot be given '{name}'"):
        call_arguments(tiny_pipe, PromptBatch(("a cat",), (0,), {name: (1,)}), PLAN)


def test_what_a_pipeline_does_not_check_itself_is_a_user_error(tiny_pipe: StableDiffusionPipeline) -> None:
    plan = SamplingPlan(2, arguments=(("clip_skip", 100),))
    with pytest.raises(ValueError, match=r"cannot be called with the pipeline arguments clip_skip=100 \(IndexError"):
        planned_timesteps(tiny_pipe, "unet", plan)


def test_calls_of_one_step_have_the_same_timestep_and_sample() -> None:
    sample, text = torch.ones(2, 4, 8, 8), torch.zeros(2, 3, 5)
    call = DenoiserCall((sample,), {"text": text}, 7.0, (7.0, 1.0))
    other_text = DenoiserCall((sample.clone(),), {"text": text + 1}, 7.0, (7.0, 1.0))
    assert call.is_of_one_step_with(other_text)
    assert not call.is_of_one_step_with(replace(call, timestep=1.0))
    assert not call.is_of_one_step_with(replace(call, args=(sample + 1,)))
    assert not call.is_of_one_step_with(replace(call, args=(sample[:1],)))
