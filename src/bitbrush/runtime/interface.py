"""Interface of the runtimes that execute quantized layers, and their reports."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from bitbrush.network.layers import QuantizedLayer


@dataclass(frozen=True)
class Execution:
    """Kernel that executes a layer; ``fallback`` says why it is no integer kernel, or is None."""

    layer: str
    kernel: str
    fallback: str | None = None


def layers_by_fallback(executions: Iterable[Execution]) -> dict[str, list[str]]:
    """Groups the layers that are not computed in integers by their kernel and reason.

    Returns:
        Layer names by ``"kernel: reason"``.
    """
    found: dict[str, list[str]] = {}
    for one in executions:
        if one.fallback is not None:
            found.setdefault(f"{one.kernel}: {one.fallback}", []).append(one.layer)
    return found


class Runtime(Protocol):
    """Executor of quantized layers."""

    @property
    def name(self) -> str:
        """Name of the runtime, see :class:`~bitbrush.runtime.choose.RuntimeName`."""
        ...

    @property
    def description(self) -> str:
        """Kernels and dtypes that it computes with, in one line."""
        ...

    @property
    def device(self) -> torch.device | None:
        """Device that it computes on; None: the device of the denoiser."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of everything between the products of quantized layers."""
        ...

    def execution(self, original: nn.Module, layer: QuantizedLayer) -> Execution:
        """Predicts the result of :meth:`lower` for a layer that replaces ``original``; changes nothing."""
        ...

    def lower(self, denoiser: nn.Module, layers: Iterable[QuantizedLayer]) -> tuple[Execution, ...]:
        """Changes ``denoiser`` in place so that it computes with the quantized layers.

        Args:
            denoiser: Denoiser in floating point. Layers that are not listed stay as they are.
            layers: Quantized layers, which may be generated one after another.

        Returns:
            How each layer is executed, in order.
        """
        ...


class RuntimeUnavailable(ValueError):
    """Error: this machine or installation cannot run the requested runtime."""
