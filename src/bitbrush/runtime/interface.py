"""What every executor of quantized layers offers, and how it tells what it does."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from bitbrush.network.layers import QuantizedLayer


@dataclass(frozen=True)
class Execution:
    """How one layer is executed: by which kernel; ``fallback`` says why not in integers, None where it is."""

    layer: str
    kernel: str
    fallback: str | None = None


class Runtime(Protocol):
    """An executor. ``description``: the kernels and types it computes with, in a line."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    def lower(self, denoiser: nn.Module, layers: Iterable[QuantizedLayer]) -> tuple[Execution, ...]:
        """Changes ``denoiser`` in place so that it computes with the given layers; what becomes of each.

        ``layers`` may be read lazily, one after another. A layer that is not named stays as it is.
        """
        ...


class RuntimeUnavailable(ValueError):
    """This machine, or this installation, cannot run the executor that was asked for."""
