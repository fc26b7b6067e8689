"""U-Net of Stable Diffusion 1.x, 2.x and SDXL."""

from typing import Any

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D, CrossAttnUpBlock2D, DownBlock2D, UpBlock2D
from torch import nn

from bitbrush.network.declared import blocks_of_classes
from bitbrush.network.family import Family
from bitbrush.network.unet_fusions import unet_fusions


def _high_precision_layers(denoiser: Any) -> tuple[str, ...]:
    """Returns the first and the last convolution, and the shortcut of the last block.

    That shortcut reads the features of ``conv_in`` and passes them to the output past all norms but the last.
    """
    block = len(denoiser.up_blocks) - 1
    resnet = len(denoiser.up_blocks[block].resnets) - 1
    return "conv_in", f"up_blocks.{block}.resnets.{resnet}.conv_shortcut", "conv_out"


def _skip_readers(denoiser: Any) -> dict[str, int]:
    """Finds the convolutions of the up blocks that read a skip, and the channel at which the skip begins.

    Each residual block of an up block reads the previous output and the last unread skip. A down block produces skips
    from every residual block and its downsampler. A U-Net with blocks of another kind yields nothing.
    """
    down = all(isinstance(block, DownBlock2D | CrossAttnDownBlock2D) for block in denoiser.down_blocks)
    if not (down and all(isinstance(block, UpBlock2D | CrossAttnUpBlock2D) for block in denoiser.up_blocks)):
        return {}
    skips = [denoiser.conv_in]
    for block in denoiser.down_blocks:
        skips += [*block.resnets, *(block.downsamplers or ())]
    begins: dict[str, int] = {}
    for number, block in enumerate(denoiser.up_blocks):
        for index, resnet in enumerate(block.resnets):
            begin = resnet.in_channels - skips.pop().out_channels
            layers = ("conv1", "conv_shortcut") if resnet.conv_shortcut is not None else ("conv1",)
            begins |= {f"up_blocks.{number}.resnets.{index}.{layer}": begin for layer in layers}
    return begins


def _text_layers(denoiser: Any) -> tuple[str, ...]:
    """Returns the keys and values of cross-attention."""
    return tuple(
        f"{name}.attn2.{part}"
        for name, block in denoiser.named_modules()
        if isinstance(block, BasicTransformerBlock) and block.attn2 is not None
        for part in ("to_k", "to_v")
    )


def _blocks(denoiser: nn.Module) -> tuple[str, ...]:
    """Returns the residual and the transformer blocks; diffusers also declares the stages that contain them."""
    return blocks_of_classes(denoiser, ("ResnetBlock2D", "BasicTransformerBlock"))


UNET = Family(
    name="unet",
    denoiser_class="UNet2DConditionModel",
    component="unet",
    blocks=_blocks,
    high_precision_layers=_high_precision_layers,
    fusions=unet_fusions,
    skip_readers=_skip_readers,
    text_layers=_text_layers,
)
