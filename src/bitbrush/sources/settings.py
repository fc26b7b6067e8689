"""Settings that pipelines compute with, although the classes of their components allow null."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffusers import (
    DiffusionPipeline,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection

DENOISERS = (UNet2DConditionModel, SD3Transformer2DModel, PixArtTransformer2DModel)
LARGEST_SAMPLE = 1024
"""Largest side of a denoiser's samples, in latents; published ones have up to 512."""


def require_settings(pipe: DiffusionPipeline) -> None:
    """Checks that no setting is null with which the pipeline computes, and that the size of its samples is one.

    Raises:
        ValueError: A setting is null or no size; the message names the component and the setting.
    """
    for name, part in pipe.components.items():
        if isinstance(part, DENOISERS) and (size := getattr(part.config, "sample_size", None)) is not None:
            _require_size(name, size)
    for name, key in _settings(pipe.components):
        if getattr(getattr(pipe, name).config, key, None) is None:
            raise ValueError(
                f"{name} has the setting {key} null or not at all, and {type(pipe).__name__} computes with it: set it "
                "to the model's value, and quantize again"
            )


def _require_size(name: str, size: int | Sequence[int]) -> None:
    """Rejects what is neither a side nor height and width; the library's annotations hold the types."""
    sides = [size] if isinstance(size, int) else size
    if (not isinstance(size, int) and len(sides) != 2) or not all(1 <= side <= LARGEST_SAMPLE for side in sides):
        raise ValueError(
            f"{name} has the setting sample_size {size}; a side, or two, from 1 to {LARGEST_SAMPLE} is due"
        )


def _settings(components: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields component and name of each setting; a test compares them with the pipelines' source."""
    for name, part in components.items():
        match part:
            case UNet2DConditionModel():
                yield name, "sample_size"
                if part.config.get("addition_embed_type") == "text_time":
                    yield name, "addition_time_embed_dim"
            case SD3Transformer2DModel() | FluxTransformer2DModel():
                yield "vae", "shift_factor"
            case PixArtTransformer2DModel():
                yield name, "out_channels"
            case CLIPTextModel() | CLIPTextModelWithProjection():
                yield name, "eos_token_id"
    if components["scheduler"].config.get("use_dynamic_shifting"):
        yield from (("scheduler", key) for key in ("base_shift", "max_shift"))
