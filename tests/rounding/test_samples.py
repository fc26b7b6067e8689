"""The denoiser calls that are learned from: of the full-precision trajectories, staggered, bounded."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from bitbrush.network.unet import UNET
from bitbrush.rounding.samples import EVERY, MAX_PROMPTS, PROMPTS_PER_CALL, record_samples
from bitbrush.session.session import Session
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import DenoiserCall, planned_timesteps, prompt_batches

PLAN = SamplingPlan(steps=8, guidance_scale=1.0)


def recorded(pipe: StableDiffusionPipeline, prompts: int, batch_size: int) -> tuple[list[DenoiserCall], int]:
    batches = prompt_batches([f"cat {i}" for i in range(prompts)], 0, batch_size)
    session = Session()
    return record_samples(pipe, UNET, batches, PLAN, session), session.costs.calls


def test_the_batches_together_cover_every_second_call(tiny_pipe: StableDiffusionPipeline) -> None:
    samples, calls = recorded(tiny_pipe, 16, 16)
    planned = planned_timesteps(tiny_pipe, "unet", PLAN)
    assert calls == len(planned) == 9
    assert [sample.timestep for sample in samples] == list(planned[:: EVERY // 2])
    assert {len(sample.args[0]) for sample in samples} == {PROMPTS_PER_CALL}


@pytest.mark.parametrize(("prompts", "batch_size"), [(1, 4), (5, 2), (40, 3)])
def test_some_prompts_suffice_however_they_are_batched(
    tiny_pipe: StableDiffusionPipeline, prompts: int, batch_size: int
) -> None:
    passes: list[int] = []
    tiny_pipe.unet.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    samples, calls = recorded(tiny_pipe, prompts, batch_size)
    used = min(prompts, MAX_PROMPTS)
    assert sum(passes) == used * calls
    batches = -(-used // PROMPTS_PER_CALL)
    assert len(passes) == batches * calls
    assert {len(sample.args[0]) for sample in samples} == {min(used, PROMPTS_PER_CALL)}


def test_samples_are_those_of_the_full_precision_model(tiny_pipe: StableDiffusionPipeline) -> None:
    (batch,) = prompt_batches(["a cat", "a dog"], 3, 2)
    samples = record_samples(tiny_pipe, UNET, [batch], PLAN, Session())
    given: list[torch.Tensor] = []
    tiny_pipe.unet.register_forward_pre_hook(lambda _, args: given.append(args[0].clone()))
    tiny_pipe(
        list(batch.prompts),
        num_inference_steps=PLAN.steps,
        guidance_scale=PLAN.guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in batch.seeds],
        output_type="latent",
    )
    assert len(samples) == len(given[::EVERY]) == 3
    assert all(torch.equal(sample.args[0], x) for sample, x in zip(samples, given[::EVERY], strict=True))
