"""Implementations of the operations between the integer products on this machine."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from bitbrush.runtime.attention import AttentionKernel, torch_attention
from bitbrush.runtime.fused_ops import FusedOps, TorchFusedOps
from bitbrush.runtime.native.attention import native_attention
from bitbrush.runtime.native.build import NativeUnavailable, native_library
from bitbrush.runtime.native.fused_ops import NativeFusedOps
from bitbrush.runtime.native.nibbles import native_expand
from bitbrush.runtime.nibbles import Nibbles, from_nibbles

Expand: TypeAlias = Callable[[Nibbles, Tensor], None]
"""Expands 4-bit weights into a buffer of their size."""


@dataclass(frozen=True)
class Tools:
    """Implementations of the operations; ``shortfall`` says why they are not native, or is None."""

    fused_ops: FusedOps
    attention: AttentionKernel
    expand: Expand
    shortfall: str | None = None


def native_tools() -> Tools:
    """Builds the native implementations.

    Raises:
        NativeUnavailable: They cannot be compiled.
    """
    library = native_library()
    return Tools(NativeFusedOps(library), native_attention(library), native_expand(library))


def torch_tools(shortfall: str) -> Tools:
    """Builds the implementations by torch's operators, with the reason for them."""
    return Tools(TorchFusedOps(), torch_attention, from_nibbles, shortfall)


def best_tools() -> Tools:
    """Builds the native implementations, or torch's with the reason."""
    try:
        return native_tools()
    except NativeUnavailable as error:
        return torch_tools(str(error))
