"""The joint-attention transformer of Stable Diffusion 3 and 3.5."""

from typing import Any

from diffusers import SD3Transformer2DModel
from diffusers.models.attention import JointTransformerBlock

from bitbrush.network.family import Family


def _high_precision_layers(_: Any) -> tuple[str, ...]:
    """The convolution that makes tokens of the latents, and the layer that makes the output of them."""
    return "pos_embed.proj", "proj_out"


SD3 = Family(
    name="sd3",
    component="transformer",
    denoiser_class=SD3Transformer2DModel,
    high_precision_layers=_high_precision_layers,
    block_classes=(JointTransformerBlock,),
)
