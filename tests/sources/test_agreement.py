"""Sizes of networks that do not agree are refused by file and setting before a call finds out, and real ones agree."""

import copy
from functools import cache
from typing import Any

import diffusers
import pytest
from diffusers import DiffusionPipeline

from bitbrush.sources.agreement import require_agreement
from bitbrush.sources.savable import require_savable
from tests.artifact.pipelines import CASES, UNKNOWN, pipeline

WRONG: tuple[tuple[str, str, str, Any], ...] = (
    ("sd1", "unet", "cross_attention_dim", 24),
    ("sd1", "unet", "cross_attention_dim", [16, 16, 16, 24]),
    ("sd1", "unet", "in_channels", 9),
    ("sd1", "unet", "out_channels", 8),
    ("sd1", "text_encoder", "hidden_size", 24),
    ("sd1", "vae", "latent_channels", 16),
    ("sd1", "vae", "latents_mean", [0.0]),
    ("sd-inpainting", "unet", "in_channels", 8),
    ("sdxl", "unet", "cross_attention_dim", 16),
    ("sdxl", "unet", "projection_class_embeddings_input_dim", 16 + 5 * 8),
    ("sdxl", "unet", "addition_time_embed_dim", 4),
    ("sdxl", "text_encoder_2", "projection_dim", 512),
    ("sdxl", "vae", "latents_std", [1.0] * 16),
    ("sdxl-refiner", "unet", "projection_class_embeddings_input_dim", 16 + 6 * 8),
    ("sdxl-refiner", "unet", "cross_attention_dim", 32),
    ("sdxl", "unet", "downsample_padding", 2),
    ("sdxl", "text_encoder_2", "num_hidden_layers", 0),
    ("pixart", "transformer", "sample_size", 64),
    ("pixart", "text_encoder", "relative_attention_max_distance", 8),
    ("pixart", "transformer", "caption_channels", 24),
    ("pixart", "transformer", "cross_attention_dim", 16),
    ("pixart", "transformer", "out_channels", 5),
    ("sd3", "transformer", "sample_size", 25),
    ("sd3", "transformer", "sample_size", 26),
    ("sd3", "transformer", "pos_embed_max_size", 3),
    ("sd3", "transformer", "joint_attention_dim", 16),
    ("sd3", "transformer", "pooled_projection_dim", 16),
    ("sd3", "transformer", "caption_projection_dim", 40),
    ("sd3", "text_encoder_2", "hidden_size", 48),
    ("sd3", "vae", "latent_channels", 16),
    ("flux-dev", "transformer", "axes_dims_rope", [2, 2]),
    ("flux-dev", "transformer", "axes_dims_rope", [2, 2, 2]),
    ("flux-dev", "transformer", "axes_dims_rope", [1, 3, 4]),
    ("flux-dev", "transformer", "axes_dims_rope", [2, 2, 4, 4]),
    ("flux-dev", "transformer", "in_channels", 4),
    ("flux-dev", "transformer", "out_channels", 4),
    ("flux-dev", "transformer", "pooled_projection_dim", 40),
    ("flux-dev", "text_encoder_2", "d_model", 24),
    ("flux-dev", "scheduler", "num_train_timesteps", 500),
)


@cache
def made(name: str) -> DiffusionPipeline:
    return pipeline(UNKNOWN if name == "unknown" else CASES[name])


def changed(name: str, component: str, setting: str, value: Any) -> Any:
    pipe = copy.copy(made(name))
    part = copy.copy(getattr(pipe, component))
    if isinstance(part, diffusers.ConfigMixin):
        part.register_to_config(**{setting: value})
    else:
        part.config = copy.copy(part.config)
        setattr(part.config, setting, value)
    setattr(pipe, component, part)
    return pipe


@pytest.mark.parametrize("name", [*CASES, "unknown"])
def test_published_pipelines_agree(name: str) -> None:
    require_agreement(made(name), type(made(name)).__name__)


@pytest.mark.parametrize(("name", "component", "setting", "value"), WRONG)
def test_a_size_that_does_not_fit_is_named(name: str, component: str, setting: str, value: Any) -> None:
    pipe = changed(name, component, setting, value)
    with pytest.raises(ValueError, match=r"config\.json: .* is due: .*; correct it") as caught:
        require_savable(pipe)
    assert component in str(caught.value)
    assert setting in str(caught.value)


@pytest.mark.parametrize("absent", ["text_encoder", "text_encoder_2", "text_encoder_3", "vae"])
def test_what_is_absent_needs_not_agree(absent: str) -> None:
    """Users compute the texts beforehand, and drop the encoders."""
    for name in ("sdxl", "sd3", "flux-dev"):
        pipe = copy.copy(made(name))
        if absent in pipe.components:
            setattr(pipe, absent, None)
        require_agreement(pipe, type(pipe).__name__)


def test_a_class_of_the_users_own_may_give_its_denoiser_other_sizes() -> None:
    pipe = changed("sd1", "unet", "in_channels", 9)
    require_agreement(pipe, "MyPipeline")
    with pytest.raises(ValueError, match=r"unet/config\.json: in_channels is 9, and 4 is due"):
        require_agreement(pipe, "StableDiffusionPipeline")
