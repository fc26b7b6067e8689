"""Joint-attention transformer of Stable Diffusion 3 and 3.5."""

from typing import Any

from diffusers import SD3Transformer2DModel
from diffusers.models.attention import JointTransformerBlock

from bitbrush.network.family import Family


def _high_precision_layers(_: Any) -> tuple[str, ...]:
    """Returns the convolution that turns latents into tokens and the layer that computes the output."""
    return "pos_embed.proj", "proj_out"


SD3 = Family(
    name="sd3",
    component="transformer",
    denoiser_class=SD3Transformer2DModel,
    high_precision_layers=_high_precision_layers,
    block_classes=(JointTransformerBlock,),
)
