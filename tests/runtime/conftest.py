"""What several tests of executors share."""

import copy

import pytest
from torch import Tensor, nn

from bitbrush.runtime.interface import RuntimeUnavailable
from bitbrush.runtime.onednn import probe


class Alone(nn.Module):
    """A denoiser of one layer, a copy of the one given."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = copy.deepcopy(layer)

    def forward(self, sample: Tensor, timestep: float) -> Tensor:
        y: Tensor = self.layer(sample)
        return y


def assert_same_sums(y: Tensor, expected: Tensor, weight: Tensor) -> None:
    """Compares a layer's output with the reference's, ``weight`` (C_out, ...) being the layer's.

    Integer sums are exact, those of the reference are float32's: the rounding errors of n products add up like a random
    walk, to some sqrt(n) roundings of the largest output. Four times that holds for any order of summation. One 8-bit
    integer that is wrong by one changes an output by 1e-4 of that.
    """
    roundings = 4 * weight[0].numel() ** 0.5
    assert (y - expected).abs().max() <= roundings * 2**-24 * expected.abs().max()


@pytest.fixture(scope="session")
def exact_products() -> None:
    """Skips where oneDNN's products are not exact."""
    try:
        probe.require_exact_products()
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
