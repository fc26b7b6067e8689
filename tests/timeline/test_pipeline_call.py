"""A plan is refused if the pipeline's call or the scheduler would ignore it, or cannot run it."""

from types import SimpleNamespace
from typing import Any

import pytest
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    LCMScheduler,
    PixArtAlphaPipeline,
    PNDMScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from bitbrush.timeline.pipeline_call import LARGEST_SIDE, OWN_ARGUMENTS, require_callable, require_steps
from bitbrush.timeline.plan import SamplingPlan

SD, SDXL, SD3 = StableDiffusionPipeline, StableDiffusionXLPipeline, StableDiffusion3Pipeline


def check(pipeline: type, scheduler: Any = None, *, steps: int = 2, **arguments: Any) -> None:
    require_callable(pipeline, scheduler, SamplingPlan(steps, arguments=tuple(arguments.items())))


@pytest.mark.parametrize(
    ("pipeline", "arguments"),
    [
        (SD, {"height": 768, "width": 512, "eta": 0, "guidance_rescale": 0.7, "timesteps": (999, 1)}),
        (SD, {"negative_prompt": ("a", "b"), "clip_skip": 1, "sigmas": (14, 7.5)}),
        (SDXL, {"original_size": (1024, 1024), "denoising_end": 0.8, "prompt_2": "x", "crops_coords_top_left": (0, 0)}),
        (SD3, {"skip_guidance_layers": (7, 8), "max_sequence_length": 77, "mu": 1}),
        (FluxPipeline, {"true_cfg_scale": 2, "max_sequence_length": 512}),
        (PixArtAlphaPipeline, {"negative_prompt": ("a", "b"), "clean_caption": False}),
        (StableDiffusionImg2ImgPipeline, {"strength": 0.5}),
    ],
)
def test_what_a_pipeline_takes_passes(pipeline: type, arguments: dict[str, Any]) -> None:
    check(pipeline, **arguments)


@pytest.mark.parametrize("side", ["height", "width"])
def test_one_side_alone_is_refused_where_the_pipeline_ignores_it(side: str) -> None:
    """Stable Diffusion 1's call takes its defaults unless both are given; SDXL's does not."""
    with pytest.raises(ValueError, match=f"{side} is 768, which StableDiffusionPipeline ignores.*height and width"):
        check(SD, **{side: 768})
    check(SDXL, **{side: 768})


@pytest.mark.parametrize("name", sorted(OWN_ARGUMENTS | {"kwargs", "self", "strength", "heigth"}))
@pytest.mark.parametrize("pipeline", [SD, SDXL, PixArtAlphaPipeline])
def test_other_names_are_refused(pipeline: type, name: str) -> None:
    with pytest.raises(ValueError, match=f"{pipeline.__name__} cannot be given '{name}'; it takes .*height"):
        check(pipeline, **{name: 1})


@pytest.mark.parametrize(
    ("pipeline", "name", "value"),
    [
        (SD, "height", "N"),
        (SD, "height", 768.0),
        (SD, "height", True),
        (SD, "height", (1, 2)),
        (SD, "height", 0),
        (SD, "width", -8),
        (SD, "width", LARGEST_SIDE + 1),
        (SD, "clip_skip", 10**400),
        (SD, "eta", "x"),
        (SD, "guidance_rescale", float("nan")),
        (SD, "guidance_rescale", float("-inf")),
        (SD, "guidance_rescale", 10**400),
        (SD, "guidance_rescale", None),
        (SD, "latents", 1),
        (SD, "prompt_embeds", "x"),
        (SD, "ip_adapter_image", "cat.png"),
        (SD, "cross_attention_kwargs", (1,)),
        (SD, "timesteps", (1, "x")),
        (SD, "timesteps", 1),
        (SDXL, "original_size", (1,)),
        (SDXL, "original_size", (1, 2, 3)),
        (SDXL, "original_size", (1.5, 2)),
        (PixArtAlphaPipeline, "clean_caption", 1),
        (StableDiffusionImg2ImgPipeline, "strength", "0.5"),
    ],
)
def test_values_of_another_type_or_size_are_refused(pipeline: type, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"pipeline argument {name} is "):
        check(pipeline, **{name: value})


def test_a_scheduler_without_eta_would_ignore_it() -> None:
    check(SD, DDIMScheduler(), eta=0.5)
    for scheduler in (PNDMScheduler(), EulerDiscreteScheduler()):
        with pytest.raises(ValueError, match=r"eta is 0.5, which StableDiffusionPipeline ignores with "):
            check(SD, scheduler, eta=0.5)


@pytest.mark.parametrize(
    ("scheduler", "most"),
    [
        (PNDMScheduler(), 1000),
        (DDIMScheduler(num_train_timesteps=40), 40),
        (LCMScheduler(), 50),
        (FlowMatchEulerDiscreteScheduler(), 1000),
    ],
)
def test_steps_end_where_the_schedulers_do(scheduler: Any, most: int) -> None:
    require_steps(scheduler, most)
    with pytest.raises(ValueError, match=rf"steps is {most + 1}, and {type(scheduler).__name__} has at most {most}"):
        check(SD, scheduler, steps=most + 1)


@pytest.mark.parametrize("kind", [PNDMScheduler, DDIMScheduler])
def test_steps_whose_first_timestep_is_beyond_the_table_are_refused(kind: Any) -> None:
    """Stable Diffusion's ``steps_offset`` makes the first of 1,000 timesteps the 1001st of 1,000."""
    scheduler = kind(steps_offset=1, timestep_spacing="leading")
    check(SD, scheduler, steps=999)
    with pytest.raises(ValueError, match=r"steps is 1000: .* would begin at timestep 1000, and knows those up to 999"):
        check(SD, scheduler, steps=1000)
    check(SD, EulerDiscreteScheduler(steps_offset=1, timestep_spacing="leading"), steps=1000)  # has no table


def test_own_timesteps_need_no_number_of_steps() -> None:
    check(SD, LCMScheduler(), steps=60, timesteps=(999, 500))


def test_an_unknown_annotation_takes_all() -> None:
    class Pipeline:
        def __call__(self, prompt: str, plain=1, late: "Unknown" = None) -> None:  # type: ignore[no-untyped-def]  # noqa: F821
            """Takes a prompt."""

    check(Pipeline, SimpleNamespace(config={}), plain="x", late=(1, 2))
