"""Hooks of layers that are emulated amid others. They hold no module, so that copies of a layer may share them."""

from typing import Any

import torch
from torch import Tensor, nn


def widen_input(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Pre-hook: the layer is given float32."""
    return args[0].float(), *args[1:]


def answer_in(dtype: torch.dtype, _: nn.Module, __: Any, y: Tensor) -> Tensor:
    """Forward hook, its first argument bound: the layer answers in ``dtype``."""
    return y.to(dtype)
