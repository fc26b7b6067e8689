"""The clock reads the timestep however the denoiser is called."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitbrush.timeline.clock import Clock, timestep_reader


class Denoiser(nn.Module):
    def forward(self, sample: Tensor, timestep: Any, text: Tensor | None = None) -> Tensor:
        return sample


class NoDenoiser(nn.Module):
    def forward(self, sample: Tensor, sigma: float) -> Tensor:
        return sample


SAMPLE = torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("given", "timestep"),
    [
        (981, 981.0),
        (0.5, 0.5),
        (torch.tensor(981), 981.0),
        (torch.tensor(0.25), 0.25),
        (torch.tensor([7]), 7.0),
        (torch.tensor([981, 981]), 981.0),
        (torch.tensor([[1.5], [1.5]]), 1.5),
        (torch.tensor(3, dtype=torch.float16), 3.0),
    ],
    ids=str,
)
def test_reads_numbers_and_tensors_by_position_and_by_name(given: Any, timestep: float) -> None:
    denoiser, clock = Denoiser(), Clock()
    clock.attach(denoiser)
    denoiser(SAMPLE, given)
    assert clock.timestep == timestep
    denoiser(SAMPLE, 1)
    denoiser(SAMPLE, timestep=given, text=None)
    assert clock.timestep == timestep
    denoiser(SAMPLE, 1)
    denoiser(timestep=given, sample=SAMPLE)
    assert clock.timestep == timestep
    assert isinstance(clock.timestep, float)


def test_layers_inside_already_see_the_timestep() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, sample: Tensor, timestep: float) -> Tensor:
            return self.inner(sample)

    denoiser, clock, seen = Outer(), Clock(), []
    clock.attach(denoiser)
    denoiser.inner.register_forward_pre_hook(lambda *_: seen.append(clock.timestep))
    for timestep in (3.0, 2.0, 1.0):
        denoiser(SAMPLE, timestep)
    assert seen == [3.0, 2.0, 1.0]


def test_before_the_first_call_there_is_no_timestep() -> None:
    clock = Clock()
    clock.attach(Denoiser())
    with pytest.raises(RuntimeError, match="before its denoiser was called"):
        _ = clock.timestep


def test_stops_with_its_handle() -> None:
    denoiser, clock = Denoiser(), Clock()
    handle = clock.attach(denoiser)
    denoiser(SAMPLE, 5)
    handle.remove()
    denoiser(SAMPLE, 6)
    assert clock.timestep == 5.0


def test_mixed_timesteps_are_refused() -> None:
    denoiser = Denoiser()
    Clock().attach(denoiser)
    with pytest.raises(ValueError, match=r"timesteps from 1\.0 to 981\.0; one call is one step"):
        denoiser(SAMPLE, torch.tensor([981, 1]))


def test_a_module_without_timestep_is_refused() -> None:
    with pytest.raises(TypeError, match=r"NoDenoiser\.forward takes \['sample', 'sigma'\], no 'timestep'"):
        timestep_reader(NoDenoiser())
    with pytest.raises(TypeError, match="Linear"):
        Clock().attach(nn.Linear(1, 1))
