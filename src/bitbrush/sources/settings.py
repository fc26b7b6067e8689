"""Settings that pipelines compute with, although the classes of their components allow null."""

from collections.abc import Iterator, Mapping
from typing import Any

from diffusers import (
    DiffusionPipeline,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection


def require_settings(pipe: DiffusionPipeline) -> None:
    """Checks that no setting is null with which the pipeline computes.

    Raises:
        ValueError: A setting is null; the message names the component and the setting.
    """
    for name, key in _settings(pipe.components):
        if getattr(getattr(pipe, name).config, key, None) is None:
            raise ValueError(
                f"{name} has the setting {key} null or not at all, and {type(pipe).__name__} computes with it: set it "
                "to the model's value, and quantize again"
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
