"""Schedulers by short name and by class."""

import diffusers
import pytest
from diffusers import StableDiffusionPipeline

from bitbrush.sources.schedulers import (
    FLOW_NAMES,
    SHORT_NAMES,
    names_for,
    with_scheduler,
)
from tests.artifact.pipelines import CASES, pipeline


@pytest.mark.parametrize("name", SHORT_NAMES)
def test_short_and_class_names_are_the_same(tiny_pipe: StableDiffusionPipeline, name: str) -> None:
    own = tiny_pipe.scheduler
    for given in (name, SHORT_NAMES[name]):
        other = with_scheduler(tiny_pipe, given)
        assert type(other.scheduler) is getattr(diffusers, SHORT_NAMES[name])
        assert other.scheduler.config.beta_end == own.config.beta_end
        assert other.scheduler.config.beta_schedule == own.config.beta_schedule
        assert other.unet is tiny_pipe.unet
    assert tiny_pipe.scheduler is own
    images = with_scheduler(tiny_pipe, name)("a cat", num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 16, 16, 3)


def test_no_name_is_the_pipeline_itself(tiny_pipe: StableDiffusionPipeline) -> None:
    assert with_scheduler(tiny_pipe, None) is tiny_pipe


@pytest.mark.parametrize("name", ["dice", "", "UNet2DConditionModel", "SchedulerMixin", "__version__"])
def test_unknown_names_say_what_is_known(tiny_pipe: StableDiffusionPipeline, name: str) -> None:
    with pytest.raises(
        ValueError, match=f"scheduler is '{name}'; known are pndm, .*, flow_lcm and diffusers' class names"
    ):
        with_scheduler(tiny_pipe, name)


def test_latents_are_never_clipped_to_the_range_of_pixels(tiny_pipe: StableDiffusionPipeline) -> None:
    assert "clip_sample" not in tiny_pipe.scheduler.config
    for name in ("ddim", "ddpm", "lcm"):
        assert with_scheduler(tiny_pipe, name).scheduler.config.clip_sample is False


def test_flow_matching_is_another_kind_of_model(tiny_pipe: StableDiffusionPipeline) -> None:
    flow = pipeline(CASES["sd3"])
    assert (names_for(tiny_pipe), names_for(flow)) == (tuple(SHORT_NAMES), tuple(FLOW_NAMES))
    for name in FLOW_NAMES:
        assert with_scheduler(flow, name).scheduler.config.shift == flow.scheduler.config.shift
        with pytest.raises(ValueError, match="is no flow-matching model; those that fit are pndm, "):
            with_scheduler(tiny_pipe, name)
    for name in SHORT_NAMES:
        with pytest.raises(ValueError, match=f"scheduler is '{name}', but .* is a flow-matching model; .* flow_euler"):
            with_scheduler(flow, name)
