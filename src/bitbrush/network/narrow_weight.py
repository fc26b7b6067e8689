"""Weights that stay in half precision in memory and are widened for each call of their layer.

:mod:`bitbrush.network.lazy_weights` does so for weights that are no parameters; here they are, as in the networks of a
pipeline that its user casts, moves and copies.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from bitbrush.network.extension import Extension, extend_
from bitbrush.network.lazy_weights import HALF


class NarrowWeight(Extension, nn.Module):
    """What is added to a Conv2d or Linear: its parameter is narrow, and ``weight`` has the type of the other ones."""

    wide: torch.dtype

    @property
    def weight(self) -> Tensor:
        return self._narrow().to(self.wide)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any) -> Self:
        """Behind ``to()``, ``half()`` and their like: moves the parameter and changes what it is widened to."""
        narrow = self._narrow()
        del self._parameters["weight"]
        super()._apply(fn, *args)  # type: ignore[no-untyped-call]
        example = fn(torch.empty(0, dtype=self.wide, device=narrow.device))
        self.wide = example.dtype
        self._parameters["weight"] = nn.Parameter(narrow.detach().to(example.device), requires_grad=False)
        return self

    def _narrow(self) -> Tensor:
        narrow = self._parameters["weight"]
        assert narrow is not None
        return narrow


def compute_in_float32(network: nn.Module) -> None:
    """Makes ``network`` compute in float32, in place; Conv2d and Linear weights in half precision stay so."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.weight.dtype in HALF:
            extend_(layer, NarrowWeight)
            object.__setattr__(layer, "wide", torch.float32)
    network.float()
