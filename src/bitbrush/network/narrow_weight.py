"""Weights that stay in half precision in memory and are converted for each call of their layer.

:mod:`bitbrush.network.lazy_weights` handles weights that are not parameters. Here they are parameters, as users cast,
move and copy the networks of a pipeline.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from bitbrush.network.extension import Extension, extend_
from bitbrush.network.lazy_weights import HALF


class NarrowWeight(Extension, nn.Module):
    """Extension of a Conv2d or Linear with a narrow parameter; ``weight`` has the dtype of the other parameters."""

    wide: torch.dtype

    @property
    def weight(self) -> Tensor:
        """Weight in the dtype that the layer computes in."""
        return self._narrow().to(self.wide)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any) -> Self:
        """Implements ``to()``, ``half()`` and similar: moves the parameter and changes the dtype it is converted to."""
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
