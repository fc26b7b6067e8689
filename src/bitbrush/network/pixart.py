"""Diffusion transformer of PixArt-alpha and PixArt-sigma."""

from typing import Any

from diffusers import PixArtTransformer2DModel
from diffusers.models.attention import BasicTransformerBlock

from bitbrush.network.family import Family


def _high_precision_layers(_: Any) -> tuple[str, ...]:
    """Returns the convolution that turns latents into tokens and the layer that computes the output."""
    return "pos_embed.proj", "proj_out"


PIXART = Family(
    name="pixart",
    component="transformer",
    denoiser_class=PixArtTransformer2DModel,
    high_precision_layers=_high_precision_layers,
    block_classes=(BasicTransformerBlock,),
)
