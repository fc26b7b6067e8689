"""Where the kernels run: emulated on the CPU, or with TRITON_INTERPRET=0 on the GPU."""

import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from bitbrush.runtime.cuda.package import require_triton

INT32 = np.iinfo(np.int32)
COLUMNS = 32
"""Columns that one int8 matrix instruction sums (PTX's ``mma.sync.m16n8k32`` and ``wgmma``'s k32)."""


def checked_dot(_: object, a: Any, b: Any, total: Any, *__: object) -> Any:
    """Multiplies bytes instruction by instruction, where Triton's interpreter lets sums wrap.

    Some GPUs wrap a sum that leaves int32 and others saturate it, so none may. float64 sums are exact here.
    """
    from triton.runtime.interpreter import TensorHandle

    running = total.data.astype(np.float64)
    for k in range(0, a.data.shape[1], COLUMNS):
        running += a.data[:, k : k + COLUMNS].astype(np.float64) @ b.data[k : k + COLUMNS].astype(np.float64)
        if running.min() < INT32.min or running.max() > INT32.max:
            raise OverflowError(f"a running sum leaves int32: {running.min():.0f} to {running.max():.0f}")
    return TensorHandle(running.astype(np.int32), total.dtype.scalar)


@pytest.fixture(scope="session", autouse=True)
def _sums_stay_in_range() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if os.environ["TRITON_INTERPRET"] == "1":
            require_triton()
            patch.setattr("triton.runtime.interpreter.InterpreterBuilder.create_dot", checked_dot)
        yield


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda")


@pytest.fixture(scope="session")
def ops() -> ModuleType:
    require_triton()
    from bitbrush.runtime.cuda import ops

    return ops
