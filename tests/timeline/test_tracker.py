"""The tracker knows the timestep of the running call, in every thread its own."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitbrush.timeline.tracker import TRACKER, takes_time, timestep_reader


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
    read = timestep_reader(Denoiser())
    assert read((SAMPLE, given), {}) == timestep
    assert read((SAMPLE,), {"timestep": given, "text": None}) == timestep
    assert read((), {"timestep": given, "sample": SAMPLE}) == timestep
    assert isinstance(read((SAMPLE, given), {}), float)


def test_a_call_within_a_call_hides_the_outer_timestep() -> None:
    with TRACKER.at(3.0):
        with TRACKER.at(2.0):
            assert TRACKER.timestep == 2.0
        assert TRACKER.timestep == 3.0


def test_outside_of_a_call_there_is_no_timestep() -> None:
    with pytest.raises(ZeroDivisionError), TRACKER.at(3.0):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="outside of its denoiser's call"):
        _ = TRACKER.timestep


def test_threads_have_timesteps_of_their_own() -> None:
    barrier = threading.Barrier(8, timeout=60)

    def seen(timestep: float) -> float:
        with TRACKER.at(timestep):
            barrier.wait()  # all are within their calls
            return TRACKER.timestep

    timesteps = [float(i) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(seen, timesteps)) == timesteps


def test_tasks_have_timesteps_of_their_own() -> None:
    async def seen(timestep: float) -> float:
        with TRACKER.at(timestep):
            await asyncio.sleep(0)
            return TRACKER.timestep

    async def all_of_them() -> list[float]:
        return list(await asyncio.gather(seen(1.0), seen(2.0)))

    assert asyncio.run(all_of_them()) == [1.0, 2.0]


def test_mixed_timesteps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"timesteps from 1\.0 to 981\.0; one call is one step"):
        timestep_reader(Denoiser())((SAMPLE, torch.tensor([981, 1])), {})


def test_no_timestep_is_refused() -> None:
    with pytest.raises(ValueError, match="timestep is None"):
        timestep_reader(Denoiser())((SAMPLE, None), {})


def test_a_module_without_timestep_is_refused() -> None:
    with pytest.raises(TypeError, match=r"NoDenoiser\.forward takes \['sample', 'sigma'\], no 'timestep'"):
        timestep_reader(NoDenoiser())
    assert [takes_time(network) for network in (Denoiser(), NoDenoiser(), nn.Linear(1, 1))] == [True, False, False]
