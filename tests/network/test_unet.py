"""What is said of the U-Net holds for a U-Net."""

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from bitbrush.network.unet import UNET


def order_of_calls(unet: UNet2DConditionModel) -> list[str]:
    order: list[str] = []
    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(lambda _, __, name=name: order.append(name))
    with torch.no_grad():
        unet(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 3, 16))
    return order


def test_edge_layers_lie_next_to_the_latents(tiny_pipe: StableDiffusionPipeline) -> None:
    assert UNET.describes(tiny_pipe.unet)
    first, shortcut, last = UNET.high_precision_layers(tiny_pipe.unet)
    order = order_of_calls(getattr(tiny_pipe, UNET.component))
    # The shortcut is added to what the last block's convolutions give, and conv_out follows.
    assert (order[0], order[-2], order[-1]) == (first, shortcut, last)


def test_blocks_lie_side_by_side(tiny_pipe: StableDiffusionPipeline) -> None:
    blocks = UNET.blocks(tiny_pipe.unet)
    assert {name.split(".")[-2] for name in blocks} == {"resnets", "transformer_blocks"}
    assert not [(a, b) for a in blocks for b in blocks if b.startswith(a + ".")]
