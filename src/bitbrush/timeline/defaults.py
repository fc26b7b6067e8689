"""torch's defaults for new tensors, which belong to the calling program."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from bitbrush.session.offload import CPU


@contextmanager
def plain_defaults() -> Iterator[None]:
    """Makes new tensors float32 on the CPU while entered, whatever the caller's defaults are.

    The default dtype is global to the process: other threads see the change, if there is one.
    """
    device = torch.get_default_device()
    with _float32(), nullcontext() if device == CPU else CPU:
        yield


@contextmanager
def _float32() -> Iterator[None]:
    dtype = torch.get_default_dtype()
    if dtype == torch.float32:
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
