"""The U-Net of Stable Diffusion 1.x, 2.x and SDXL."""

from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D

from bitbrush.network.family import Family

UNET = Family(
    name="unet",
    component="unet",
    denoiser_class=UNet2DConditionModel,
    edge_layers=("conv_in", "conv_out"),
    block_classes=(ResnetBlock2D, BasicTransformerBlock),
)
