"""The diffusion transformer of PixArt-alpha and PixArt-sigma."""

from typing import Any

from diffusers import PixArtTransformer2DModel
from diffusers.models.attention import BasicTransformerBlock

from bitbrush.network.family import Family


def _high_precision_layers(_: Any) -> tuple[str, ...]:
    """The convolution that makes tokens of the latents, and the layer that makes the output of them."""
    return "pos_embed.proj", "proj_out"


PIXART = Family(
    name="pixart",
    component="transformer",
    denoiser_class=PixArtTransformer2DModel,
    high_precision_layers=_high_precision_layers,
    block_classes=(BasicTransformerBlock,),
)
