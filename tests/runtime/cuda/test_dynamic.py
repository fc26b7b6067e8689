"""Layers whose ranges are found at run time have no kernel of their own yet."""

import pytest
import torch

from bitbrush.runtime.cuda.runtime import CudaRuntime
from bitbrush.runtime.reference import ReferenceRuntime
from tests.runtime.conftest import Alone
from tests.runtime.test_dynamic import LAYERS, layer


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_the_card_says_that_it_emulates(name: str) -> None:
    module, quantized, x = layer(name, 8)
    exact, ours = Alone(module), Alone(module)
    ReferenceRuntime().lower(exact, [quantized])
    runtime = CudaRuntime(torch.device("cpu"), torch.float32)
    assert runtime.execution(module, quantized).fallback == "its ranges are found at run time"
    (execution,) = runtime.lower(ours, [quantized])
    assert execution.fallback == "its ranges are found at run time"
    torch.testing.assert_close(ours(x, 1.0), exact(x, 1.0), rtol=1e-5, atol=1e-5)
