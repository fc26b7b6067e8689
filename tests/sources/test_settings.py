"""Settings with which pipelines compute are never null: each is refused by its type, or by ``require_settings``."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
from diffusers import DiffusionPipeline
from diffusers.configuration_utils import ConfigMixin

from bitbrush.artifact import components
from bitbrush.artifact.documents import ArtifactError
from bitbrush.sources.savable import require_savable
from bitbrush.sources.settings import require_settings
from tests.artifact.pipelines import CASES, pipeline

READ = re.compile(r"self\.(\w+)\.config\.(\w+)|self\.(\w+)\.config\.get\(\"(\w+)\"")
GUARDED = {"time_cond_proj_dim", "latents_mean", "latents_std", "encoder_hid_dim_type", "get"}
"""Settings that pipelines compare with None before they compute with them."""
TRUTH = {"force_upcast", "guidance_embeds", "use_flow_sigmas", "use_attention_mask", "use_dynamic_shifting"}
"""Settings that pipelines take for false where they are null."""
DYNAMIC = {"base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift"}
"""Settings that pipelines read if the scheduler shifts its timesteps by the image's size."""


def read_settings(pipe: DiffusionPipeline) -> Iterator[tuple[str, str]]:
    """Component and key of all settings that the pipeline's source reads."""
    source = "".join(inspect.getsource(kind) for kind in type(pipe).__mro__ if kind.__module__.startswith("diffusers"))
    for match in set(READ.findall(source)):
        component, key = match[0] or match[2], match[1] or match[3]
        part = pipe.components.get(component)
        dynamic = key not in DYNAMIC or pipe.scheduler.config.get("use_dynamic_shifting")
        if isinstance(part, ConfigMixin) and key in part.config and key not in GUARDED | TRUTH and dynamic:
            yield component, key


def is_refused(pipe: DiffusionPipeline, component: str, key: str) -> bool:
    part: Any = getattr(pipe, component)
    try:
        components._require_value(None, components._arguments(type(part))[key], key)
    except ArtifactError:
        return True
    before = part.config[key]
    part.register_to_config(**{key: None})
    try:
        with pytest.raises(ValueError, match=f"{component} has the setting {key} null"):
            require_settings(pipe)
        return True
    finally:
        part.register_to_config(**{key: before})


@pytest.mark.parametrize("name", CASES)
def test_no_setting_that_the_pipeline_reads_may_be_null(name: str) -> None:
    pipe = pipeline(CASES[name])
    require_settings(pipe)
    settings = sorted(read_settings(pipe))
    assert settings
    assert all(is_refused(pipe, *setting) for setting in settings)


def test_an_encoder_that_looks_for_the_end_needs_its_token() -> None:
    """Without it, CLIP compares all tokens with None."""
    pipe = pipeline(CASES["sdxl"])
    pipe.text_encoder_2.config.eos_token_id = None
    with pytest.raises(ValueError, match="text_encoder_2 has the setting eos_token_id null"):
        require_settings(pipe)


def test_quantizing_refuses_it_before_work_begins() -> None:
    pipe = pipeline(CASES["sd1"])
    pipe.unet.register_to_config(sample_size=None)
    with pytest.raises(ValueError, match="unet has the setting sample_size null or not at all, and StableDiffusion"):
        require_savable(pipe)


@pytest.mark.parametrize("size", [0, -8, [], [8], [8, 0], [8, 8, 8], 10**6])
def test_a_size_of_samples_that_is_none_is_refused(size: Any) -> None:
    pipe = pipeline(CASES["sd1"])
    for fine in (8, [8, 16]):
        pipe.unet.register_to_config(sample_size=fine)
        require_settings(pipe)
    pipe.unet.register_to_config(sample_size=size)
    with pytest.raises(ValueError, match="unet has the setting sample_size"):
        require_settings(pipe)
