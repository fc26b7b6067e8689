"""A call's footprint: what is alive at each layer, and what it adds."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from bitbrush.network.call_memory import measure_call_memory
from bitbrush.timeline.trajectory import DenoiserCall


class Denoiser(nn.Module):
    """A skip connection past a convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1, stride=2, bias=False)
        self.linear = nn.Linear(8, 16, bias=False)
        self.config = SimpleNamespace()

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        skip = x + timestep
        y = self.conv(skip)
        return self.linear(y).sum() + skip.sum()


def test_what_is_alive_where() -> None:
    x = torch.zeros(3, 2, 16, 16)
    call = DenoiserCall((x, torch.tensor(1.0)), {}, 1.0, (1.0,))
    output, footprint = measure_call_memory(Denoiser(), call, ["conv", "linear"])
    conv, linear = footprint.modules["conv"], footprint.modules["linear"]
    assert output.shape == ()
    assert conv.live == conv.inputs == x.nbytes
    assert (conv.rows, conv.positions, conv.outputs) == (3, 64, 3 * 4 * 64 * 4)
    assert conv.inner == conv.outputs
    assert linear.live == x.nbytes + conv.outputs  # the skip connection lives on
    assert linear.inputs == conv.outputs
    assert linear.outputs == 2 * linear.inputs
    assert footprint.most >= linear.live + linear.outputs


def test_hooks_are_taken_off_again() -> None:
    denoiser = Denoiser()
    call = DenoiserCall((torch.zeros(1, 2, 16, 16), torch.tensor(1.0)), {}, 1.0, (1.0,))
    measure_call_memory(denoiser, call, ["conv"])
    assert not denoiser.conv._forward_hooks
    assert not denoiser.conv._forward_pre_hooks
