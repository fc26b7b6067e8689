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


@pytest.fixture(scope="session")
def exact_products() -> None:
    """Skips where oneDNN's products are not exact."""
    try:
        probe.require_exact_products()
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
