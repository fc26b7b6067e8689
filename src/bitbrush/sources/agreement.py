"""Settings of a pipeline's networks that must agree, since diffusers finds that they do not in the first call alone."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import diffusers
from diffusers import (
    DiffusionPipeline,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

LATENTS_ALONE = (
    "FluxImg2ImgPipeline",
    "FluxPipeline",
    "LatentConsistencyModelPipeline",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
    "StableDiffusion3Img2ImgPipeline",
    "StableDiffusion3Pipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLPipeline",
)
"""Pipelines whose denoiser sees the latents and no further channels."""
INPAINTING = ("StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline")
"""Pipelines whose denoiser may also see the latents of an image, and its mask."""
IMAGE_AXES = 3
"""Axes of FLUX's positions: a constant, row and column."""
FLUX_PATCH = 4
"""Latents that FLUX's pipelines join to one token."""
FLUX_TIMESTEPS = 1000
PIXART_CONDITIONS = 128
"""Size of the samples at which PixArt's pipeline gives its denoiser resolution and aspect ratio."""
MOST = 2**24
"""Bound of settings that have no other."""
_POSITIONS = "a multiple of patch_size, and pos_embed_max_size patches have positions"
_HEADS = "num_attention_heads times attention_head_dim"
Sizes = Iterator["Size"]


@dataclass(frozen=True)
class Size:
    """Setting of a component, and the values with which the pipeline computes.

    Attributes:
        component: Name of the component.
        setting: Name in its configuration.
        value: Value there, or what follows from it.
        allowed: Values that fit the other networks.
        reason: What gives these values.
    """

    component: str
    setting: str
    value: Any
    allowed: Collection[int]
    reason: str


def require_agreement(pipe: DiffusionPipeline, kind: str) -> None:
    """Checks that sizes of the pipeline's networks agree: latents, texts, conditions and positions.

    Args:
        pipe: Pipeline.
        kind: Name of the class that the pipeline is used as; one that is not of diffusers may need other sizes.

    Raises:
        ValueError: A setting does not fit; the message names its file, value and what is expected.
    """
    if not hasattr(diffusers, kind):
        return
    for size in _sizes(pipe):
        if size.value not in size.allowed:
            file = "scheduler_config" if size.component == "scheduler" else "config"
            raise ValueError(
                f"{size.component}/{file}.json: {size.setting} is {size.value}, and {_text(size.allowed)} is due: "
                f"{size.reason}; correct it"
            )


def _text(allowed: Collection[int]) -> str:
    return f"{allowed[0]} to {allowed[-1]}" if isinstance(allowed, range) else " or ".join(map(str, allowed))


def _sizes(pipe: DiffusionPipeline) -> Sizes:
    for name, part in pipe.components.items():
        match part:
            case UNet2DConditionModel():
                yield from _unet(pipe, name, part.config)
            case SD3Transformer2DModel():
                yield from _sd3(pipe, name, part.config)
            case FluxTransformer2DModel():
                yield from _flux(pipe, name, part.config)
            case PixArtTransformer2DModel():
                yield from _pixart(pipe, name, part.config)
            case CLIPTextModel() | CLIPTextModelWithProjection():
                layers = part.config.num_hidden_layers
                yield Size(name, "num_hidden_layers", layers, range(1, MOST), "the layer before the last is read")
            case T5EncoderModel():
                yield from _t5_positions(name, part.config)
    vae = pipe.components.get("vae")
    if (channels := _latent_channels(pipe)) is not None and vae is not None:
        for key in ("latents_mean", "latents_std"):
            if (values := vae.config.get(key)) is not None:
                yield Size("vae", f"the length of {key}", len(values), (channels,), "a value for each latent channel")


def _t5_positions(name: str, config: Any) -> Sizes:
    exact = config.relative_attention_num_buckets // 4
    reason = "more than a quarter of relative_attention_num_buckets"
    yield Size(
        name, "relative_attention_max_distance", config.relative_attention_max_distance, range(exact + 1, MOST), reason
    )


def _unet(pipe: Any, name: str, config: Any) -> Sizes:
    yield from _latents(pipe, name, config)
    yield Size(name, "downsample_padding", config.downsample_padding, (0, 1), "half of the size is left")
    widths = _text_widths(pipe)
    if widths and config.encoder_hid_dim_type is None:
        reason = f"hidden_size of {' and '.join(widths)}"
        for width in _each(config.cross_attention_dim):
            yield Size(name, "cross_attention_dim", width, (sum(widths.values()),), reason)
    second = pipe.components.get("text_encoder_2")
    if config.addition_embed_type == "text_time" and isinstance(second, CLIPTextModelWithProjection):
        numbers = 5 if pipe.config.get("requires_aesthetics_score") else 6
        due = second.config.projection_dim + numbers * config.addition_time_embed_dim
        reason = f"projection_dim of text_encoder_2, and {numbers} times addition_time_embed_dim"
        setting = "projection_class_embeddings_input_dim"
        yield Size(name, setting, config[setting], (due,), reason)


def _sd3(pipe: Any, name: str, config: Any) -> Sizes:
    yield from _latents(pipe, name, config)
    most = config.pos_embed_max_size * config.patch_size
    yield Size(name, "sample_size", config.sample_size, range(0, most + 1, config.patch_size), _POSITIONS)
    yield Size(name, "caption_projection_dim", config.caption_projection_dim, (_inner(config),), _HEADS)
    clips = [pipe.components.get(part) for part in ("text_encoder", "text_encoder_2")]
    if all(isinstance(clip, CLIPTextModelWithProjection) for clip in clips):
        pooled = sum(clip.config.projection_dim for clip in clips)
        yield Size(
            name,
            "pooled_projection_dim",
            config.pooled_projection_dim,
            (pooled,),
            "projection_dim of text_encoder and text_encoder_2",
        )
        widths, most = sum(clip.config.hidden_size for clip in clips), config.joint_attention_dim
        yield Size(
            "text_encoder_2",
            "hidden_size, with text_encoder's,",
            widths,
            range(most + 1),
            f"joint_attention_dim of {name}",
        )
    yield from _t5(pipe, name, "text_encoder_3", "joint_attention_dim", config)


def _flux(pipe: Any, name: str, config: Any) -> Sizes:
    yield from _latents(pipe, name, config, patch=FLUX_PATCH)
    trained = pipe.scheduler.config.num_train_timesteps
    yield Size("scheduler", "num_train_timesteps", trained, (FLUX_TIMESTEPS,), "FLUX's pipelines divide by it")
    axes = config.axes_dims_rope
    yield Size(name, "the length of axes_dims_rope", len(axes), (IMAGE_AXES,), "an image's positions have so many")
    yield Size(name, "the sum of axes_dims_rope", sum(axes), (config.attention_head_dim,), "attention_head_dim")
    for axis in axes:
        yield Size(
            name, "axes_dims_rope", axis, range(0, config.attention_head_dim + 1, 2), "a pair for each frequency"
        )
    clip = pipe.components.get("text_encoder")
    if isinstance(clip, CLIPTextModel):
        due = (clip.config.hidden_size,)
        yield Size(name, "pooled_projection_dim", config.pooled_projection_dim, due, "hidden_size of text_encoder")
    yield from _t5(pipe, name, "text_encoder_2", "joint_attention_dim", config)


def _pixart(pipe: Any, name: str, config: Any) -> Sizes:
    yield from _latents(pipe, name, config)
    conditioned, kind = getattr(pipe, name).use_additional_conditions, type(pipe).__name__
    if kind == "PixArtSigmaPipeline":
        yield Size(name, "use_additional_conditions", conditioned, (False,), f"{kind} gives none")
    elif kind == "PixArtAlphaPipeline" and conditioned:
        reason = "use_additional_conditions needs what the pipeline gives at this size alone"
        yield Size(name, "sample_size", config.sample_size, (PIXART_CONDITIONS,), reason)
    if config.caption_channels is None:
        yield from _t5(pipe, name, "text_encoder", "cross_attention_dim", config)
    else:
        yield Size(name, "cross_attention_dim", config.cross_attention_dim, (_inner(config),), _HEADS)
        yield from _t5(pipe, name, "text_encoder", "caption_channels", config)


def _latents(pipe: Any, name: str, config: Any, *, patch: int = 1) -> Sizes:
    """Yields the denoiser's channels, for pipelines that are known to give it latents, an image and a mask at most."""
    kind, channels = type(pipe).__name__, _latent_channels(pipe)
    if channels is None or kind not in (*LATENTS_ALONE, *INPAINTING):
        return
    channels, reason = patch * channels, "latent_channels of vae" + f", times {patch}" * (patch > 1)
    inner = (channels,) if kind in LATENTS_ALONE else (channels, 2 * channels + 1)
    yield Size(name, "in_channels", config.in_channels, inner, reason)
    with_variance = isinstance(getattr(pipe, name), PixArtTransformer2DModel)
    outer = (channels, 2 * channels) if with_variance else (channels,)
    yield Size(name, "out_channels", config.out_channels or config.in_channels, outer, reason)


def _latent_channels(pipe: Any) -> int | None:
    vae = pipe.components.get("vae")
    return None if vae is None else vae.config.get("latent_channels")


def _text_widths(pipe: Any) -> dict[str, int]:
    """Returns the widths of the CLIP encoders whose outputs are joined; none if there are others, or one is absent."""
    names = [name for name in ("text_encoder", "text_encoder_2") if name in pipe.components]
    if pipe.config.get("requires_aesthetics_score"):  # the refiner's second encoder is alone
        names = ["text_encoder_2"]
    encoders = {name: pipe.components.get(name) for name in names}
    if not all(isinstance(encoder, CLIPTextModel | CLIPTextModelWithProjection) for encoder in encoders.values()):
        return {}
    return {name: encoder.config.hidden_size for name, encoder in encoders.items()}


def _t5(pipe: Any, name: str, encoder: str, setting: str, config: Any) -> Sizes:
    part = pipe.components.get(encoder)
    if isinstance(part, T5EncoderModel):
        yield Size(name, setting, config[setting], (part.config.d_model,), f"d_model of {encoder}")


def _inner(config: Any) -> int:
    return int(config.num_attention_heads * config.attention_head_dim)


def _each(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)
