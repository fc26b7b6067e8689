"""What runs between the integer products on this machine."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from bitbrush.runtime.attention import AttentionKernel, torch_attention
from bitbrush.runtime.fused_ops import FusedOps, TorchFusedOps
from bitbrush.runtime.native.attention import native_attention
from bitbrush.runtime.native.build import NativeUnavailable, native_library
from bitbrush.runtime.native.fused_ops import NativeFusedOps, native_unpack
from bitbrush.runtime.nibbles import from_nibbles

Unpack: TypeAlias = Callable[[Tensor, Tensor, int], Tensor]
"""From nibbles (C_out, bytes) and zero points (C_out,) to signed bytes (C_out, columns)."""


@dataclass(frozen=True)
class Tools:
    """``shortfall``: why not the native kernels, None where they are."""

    fused_ops: FusedOps
    attention: AttentionKernel
    unpack: Unpack
    shortfall: str | None = None


def native_tools() -> Tools:
    """Raises NativeUnavailable where they cannot be compiled."""
    library = native_library()
    return Tools(NativeFusedOps(library), native_attention(library), native_unpack(library))


def torch_tools(shortfall: str) -> Tools:
    return Tools(TorchFusedOps(), torch_attention, from_nibbles, shortfall)


def best_tools() -> Tools:
    """The native ones, or torch's and why."""
    try:
        return native_tools()
    except NativeUnavailable as error:
        return torch_tools(str(error))
