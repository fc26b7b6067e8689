"""What runs between the integer products on this machine."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from bitbrush.runtime.attention import AttentionKernel
from bitbrush.runtime.glue import Glue

Unpack: TypeAlias = Callable[[Tensor, Tensor, int], Tensor]
"""From nibbles (C_out, bytes) and zero points (C_out,) to signed bytes (C_out, columns)."""


@dataclass(frozen=True)
class Tools:
    """``shortfall``: why not the native kernels, None where they are."""

    glue: Glue
    attention: AttentionKernel
    unpack: Unpack
    shortfall: str | None = None
