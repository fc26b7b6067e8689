"""What every executor of quantized layers offers, and how it tells what it does."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from bitbrush.network.layers import QuantizedLayer


@dataclass(frozen=True)
class Execution:
    """How one layer is executed: by which kernel; ``fallback`` says why not in integers, None where it is."""

    layer: str
    kernel: str
    fallback: str | None = None


def layers_by_fallback(executions: Iterable[Execution]) -> dict[str, list[str]]:
    """Names of the layers that are not computed in integers, by how they are instead, and why."""
    found: dict[str, list[str]] = {}
    for one in executions:
        if one.fallback is not None:
            found.setdefault(f"{one.kernel}: {one.fallback}", []).append(one.layer)
    return found


class Runtime(Protocol):
    """An executor. ``description``: the kernels and types it computes with, in a line.

    ``device``: where it computes, None: wherever the denoiser is.
    """

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def device(self) -> torch.device | None: ...

    def execution(self, original: nn.Module, layer: QuantizedLayer) -> Execution:
        """What :meth:`lower` would make of a layer, ``original`` being the one that it stands for; changes nothing."""
        ...

    def lower(self, denoiser: nn.Module, layers: Iterable[QuantizedLayer]) -> tuple[Execution, ...]:
        """Changes ``denoiser`` in place so that it computes with the given layers; what becomes of each.

        ``layers`` may be read lazily, one after another. A layer that is not named stays as it is.
        """
        ...


class RuntimeUnavailable(ValueError):
    """This machine, or this installation, cannot run the executor that was asked for."""
