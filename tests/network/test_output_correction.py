"""Corrected outputs: the right means for every timestep, off the right dimension, nothing else changed."""

from typing import Any

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bitbrush.network.output_correction import OutputCorrection, correct_output, less_means
from bitbrush.timeline.schedule import nearest

TABLES = st.dictionaries(
    st.integers(0, 1000).map(float), st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=2), min_size=1
)


class Denoiser(nn.Module):
    def forward(self, sample: Tensor, timestep: Any) -> tuple[Tensor, str]:
        return sample, "kept"


@given(TABLES, st.integers(-10, 1010), st.booleans())
def test_the_means_of_the_nearest_timestep_are_taken_off(
    table: dict[float, list[float]], timestep: int, as_tensor: bool
) -> None:
    correction = OutputCorrection.of({t: torch.tensor(means) for t, means in table.items()})
    denoiser = Denoiser()
    correct_output(denoiser, correction)
    x = torch.randn(3, 2, 4, 4)
    y, rest = denoiser(x, timestep=torch.full((3,), timestep) if as_tensor else timestep)
    means = torch.tensor(correction.means[nearest(correction.timesteps, timestep)])
    assert torch.equal(y, x - means.view(2, 1, 1))
    assert rest == "kept"


def test_positional_timesteps_are_found_and_a_removed_handle_corrects_no_more() -> None:
    denoiser = Denoiser()
    handle = correct_output(denoiser, OutputCorrection.of({9.0: torch.ones(2), 1.0: torch.zeros(2)}))
    x = torch.zeros(1, 2, 4, 4)
    assert [float(denoiser(x, t)[0].mean()) for t in (9, 1)] == [-1.0, 0.0]
    handle.remove()
    assert denoiser(x, 9)[0] is x


def test_channels_of_tokens_are_the_last_dimension() -> None:
    (y,) = less_means((torch.zeros(2, 5, 3),), torch.arange(3.0))
    assert torch.equal(y, -torch.arange(3.0).expand(2, 5, 3))


def test_outputs_stay_of_their_kind_and_dtype() -> None:
    output = Transformer2DModelOutput(sample=torch.zeros(1, 2, 4, 4, dtype=torch.bfloat16))
    corrected = less_means(output, torch.ones(2))
    assert isinstance(corrected, Transformer2DModelOutput)
    assert corrected.sample.dtype == torch.bfloat16
    assert (corrected.sample == -1).all()
    assert (output.sample == 0).all()


@given(TABLES)
def test_there_and_back(table: dict[float, list[float]]) -> None:
    correction = OutputCorrection.of({t: torch.tensor(means) for t, means in table.items()})
    assert OutputCorrection.from_dict(correction.to_dict()) == correction


@pytest.mark.parametrize("timesteps", [(1.0,), (1.0, 2.0), (2.0, 2.0)])
def test_timesteps_descend_with_means_for_each(timesteps: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="timesteps"):
        OutputCorrection(timesteps, ((0.0,), (0.0,)))
