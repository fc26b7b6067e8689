"""Networks without values have the tensors of those with values, and leave torch as it was."""

import threading

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from bitbrush.network.empty import without_values
from tests.artifact.pipelines import SDXL, clip


def described(network: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype, bool]]:
    return {name: (one.shape, one.dtype, one.requires_grad) for name, one in network.named_parameters()}


def test_tensors_are_those_of_a_network_with_values() -> None:
    unet, text = UNet2DConditionModel(**SDXL), clip()
    with without_values():
        empty = UNet2DConditionModel.from_config(unet.config), type(text)(text.config)
    for network, ours in zip((unet, text), empty, strict=True):
        assert described(ours) == described(network)
        assert all(one.is_meta for one in ours.parameters())
        values = dict(network.named_buffers())
        assert all(torch.equal(one, values[name]) for name, one in ours.named_buffers())


def test_what_is_built_afterwards_or_in_another_thread_has_values() -> None:
    def weight() -> Tensor:
        return nn.init.constant_(torch.empty(3), 2.0)

    found: list[Tensor] = []
    with without_values():
        thread = threading.Thread(target=lambda: found.append(weight()))
        thread.start()
        thread.join()
    found.append(weight())
    assert [one.tolist() for one in found] == [[2.0] * 3] * 2
