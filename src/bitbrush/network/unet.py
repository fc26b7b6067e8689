"""The U-Net of Stable Diffusion 1.x, 2.x and SDXL."""

from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D

from bitbrush.network.family import Family
from bitbrush.network.unet_fusions import unet_fusions


def _edge_layers(denoiser: Any) -> tuple[str, ...]:
    """The first and the last convolution, and the shortcut of the last block.

    That shortcut reads the features of ``conv_in`` itself and hands them on to the output past all but the last norm.
    """
    block = len(denoiser.up_blocks) - 1
    resnet = len(denoiser.up_blocks[block].resnets) - 1
    return "conv_in", f"up_blocks.{block}.resnets.{resnet}.conv_shortcut", "conv_out"


UNET = Family(
    name="unet",
    component="unet",
    denoiser_class=UNet2DConditionModel,
    edge_layers=_edge_layers,
    block_classes=(ResnetBlock2D, BasicTransformerBlock),
    fusions=unet_fusions,
)
