"""torch's defaults for new tensors, which belong to the program that calls us."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from bitbrush.timeline.spool import PROCESSOR


@contextmanager
def plain_defaults() -> Iterator[None]:
    """Makes new tensors float32 on the processor while entered, whatever the caller's defaults are.

    The type is the process's default; other threads see it, too.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    try:
        with nullcontext() if device == PROCESSOR else PROCESSOR:
            yield
    finally:
        torch.set_default_dtype(dtype)
