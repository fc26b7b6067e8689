"""Transformer of FLUX.1: blocks of joint attention, then blocks over text and image tokens as one sequence.

Its pipelines pass latents as tokens of 2 x 2 pixels and timesteps in [0, 1]. FLUX.1 dev also gets the guidance scale,
which was distilled into the weights.
"""

from typing import Any

from diffusers import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock

from bitbrush.network.family import Family


def _high_precision_layers(_: Any) -> tuple[str, ...]:
    """Returns the layer that reads the latents' tokens and the layer that computes the output."""
    return "x_embedder", "proj_out"


FLUX = Family(
    name="flux",
    component="transformer",
    denoiser_class=FluxTransformer2DModel,
    high_precision_layers=_high_precision_layers,
    block_classes=(FluxTransformerBlock, FluxSingleTransformerBlock),
)
