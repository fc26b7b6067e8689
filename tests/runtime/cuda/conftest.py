"""Where the kernels run: emulated on the processor, or with TRITON_INTERPRET=0 on the card."""

import os
from types import ModuleType

import pytest
import torch

from bitbrush.runtime.cuda.package import require_triton


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda")


@pytest.fixture(scope="session")
def ops() -> ModuleType:
    require_triton()
    from bitbrush.runtime.cuda import ops

    return ops
