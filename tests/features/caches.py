"""Rows: caches that leave out parts of some steps."""

from typing import Any

import diffusers
from diffusers.hooks import apply_faster_cache, apply_pyramid_attention_broadcast
from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS
from torch import Tensor

from tests.features.models import call
from tests.features.row import Section

CACHES = Section("Caches between steps", "A cached part of a step is computed at another step, by its ranges.")


def more_steps(pipe: Any) -> Tensor:
    return call(pipe, num_inference_steps=5)


@CACHES.row("pyramid attention broadcast (PAB)", without=more_steps, emulated=False)
def _attention_broadcast(pipe: Any) -> Tensor:
    config = diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=10,
        spatial_attention_timestep_skip_range=(-1, 2000),
        spatial_attention_block_identifiers=("transformer_blocks",),
        cross_attention_block_skip_range=10,
        cross_attention_timestep_skip_range=(-1, 2000),
        cross_attention_block_identifiers=("transformer_blocks",),
        current_timestep_callback=lambda: 500,
    )
    apply_pyramid_attention_broadcast(pipe.unet, config)
    return more_steps(pipe)


@CACHES.row("first block cache", "flux")
def _first_block_cache(pipe: Any) -> Tensor:
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=5.0))
    return call(pipe)


@CACHES.row("`disable_cache`: the images from before", "flux", same=0.0)
def _no_cache(pipe: Any) -> Tensor:
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=5.0))
    call(pipe)
    pipe.transformer.disable_cache()
    return call(pipe)


@CACHES.row("DeepCache and others that replace the `forward` of blocks", emulated=False)
def _deep_cache(pipe: Any) -> Tensor:
    block, results = pipe.unet.up_blocks[0], list[Tensor]()
    forward = block.forward

    def cached(*args: Any, **kwargs: Any) -> Tensor:
        """Computes the block in the first call alone."""
        if not results:
            results.append(forward(*args, **kwargs))
        return results[0]

    block.forward = cached
    return call(pipe)


def faster(pipe: Any, **options: Any) -> diffusers.FasterCacheConfig:
    """Configures FasterCache to leave out what it can after the first step."""
    later = (-1, 900)

    def timestep() -> float:
        return float(pipe.scheduler.timesteps[pipe.scheduler.step_index or 0])

    return diffusers.FasterCacheConfig(
        spatial_attention_timestep_skip_range=later,
        unconditional_batch_timestep_skip_range=later,
        unconditional_batch_skip_range=2,
        attention_weight_callback=lambda _: 8.0,  # so that it shows
        current_timestep_callback=timestep,
        tensor_format="BCHW",
        **options,
    )


BATCHED = ["hidden_states", "timestep", "encoder_hidden_states", "pooled_projections"]


@CACHES.row("FasterCache", "sd3")
def _faster_cache(pipe: Any) -> Tensor:
    apply_faster_cache(pipe.transformer, faster(pipe, _unconditional_conditional_input_kwargs_identifiers=BATCHED))
    return call(pipe)


@CACHES.row("FasterCache of a model that needs no guidance", "flux", slow=True)
def _faster_cache_of_attention(pipe: Any) -> Tensor:
    pipe.transformer.enable_cache(faster(pipe, is_guidance_distilled=True))
    return call(pipe)


@CACHES.row("TaylorSeer", "flux", slow=True)
def _taylor_seer(pipe: Any) -> Tensor:
    parts = [r".*norm1", r".*ff", "norm_out"]
    config = diffusers.TaylorSeerCacheConfig(cache_interval=8, disable_cache_before_step=2, cache_identifiers=parts)
    pipe.transformer.enable_cache(config)
    return call(pipe)


@CACHES.row("TaylorSeer Lite", "flux", slow=True)
def _taylor_seer_lite(pipe: Any) -> Tensor:
    config = diffusers.TaylorSeerCacheConfig(cache_interval=8, disable_cache_before_step=1, use_lite_mode=True)
    pipe.transformer.enable_cache(config)
    return call(pipe)


@CACHES.row("MagCache", "flux", slow=True)
def _mag_cache(pipe: Any) -> Tensor:
    config = diffusers.MagCacheConfig(
        threshold=5.0, retention_ratio=0.0, num_inference_steps=4, mag_ratios=FLUX_MAG_RATIOS
    )
    pipe.transformer.enable_cache(config)
    return call(pipe)
