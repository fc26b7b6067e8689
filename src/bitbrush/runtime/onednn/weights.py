"""Integer weights in oneDNN's layouts."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from functools import partial
from typing import Protocol, Self, TypeAlias

import torch
from torch import Tensor

from bitbrush.numerics.weights import QuantizedWeight
from bitbrush.runtime.integer_weight import IntegerWeight
from bitbrush.runtime.integers import signed_bytes
from bitbrush.runtime.nibbles import Arrangement, Nibbles, to_nibbles
from bitbrush.runtime.onednn.opaque import Layout, opaque_bytes, wrap
from bitbrush.runtime.onednn.workspace import Workspace
from bitbrush.runtime.tools import Expand

Pack: TypeAlias = Callable[[Tensor], Tensor]
"""Converts signed bytes (C_out, C_in, ...) to oneDNN's own layout."""

_CHANNELS = (64, 48, 32, 24, 16, 8)
"""Output channels of a block in oneDNN's layouts."""
_TOGETHER = 4
"""Input channels that the processor's products sum at once, side by side in memory; also the bytes of a sum."""


class Memory(StrEnum):
    """Storage of weights in memory."""

    EXPANDED = "expanded"
    """Single byte per weight, packed once."""
    LOW = "low"
    """Half a byte per weight of up to 4 bits, expanded at every call of its layer.

    Networks that are not quantized also keep the dtype that they are stored in.
    """


class Weights(Protocol):
    """Weights of a layer; ``stored`` is the form kept in memory."""

    stored: IntegerWeight

    def packed(self) -> AbstractContextManager[Tensor]:
        """Lends the weights in the layout of the kernels."""
        ...

    def signed(self) -> Tensor:
        """Returns the weights less their zero points, (C_out, ...) int8."""
        ...


class ExpandedWeights:
    """Weights stored in the layout of the kernels."""

    def __init__(self, packed: Tensor) -> None:
        self.stored = IntegerWeight(packed)

    def packed(self) -> AbstractContextManager[Tensor]:
        """Lends the stored weights."""
        return nullcontext(self.stored)

    def signed(self) -> Tensor:
        """Returns the weights less their zero points, (C_out, ...) int8."""
        return _signed(self.stored)


class NibbleWeights:
    """Weights stored two in a byte in the order of the kernels, and expanded into a workspace at every call."""

    def __init__(self, nibbles: Nibbles, layout: Layout, workspace: Workspace, expand: Expand) -> None:
        self.stored = IntegerWeight(nibbles.packed)
        self._rest = nibbles[1:]
        self._layout, self._workspace, self._expand = layout, workspace, expand
        workspace.reserve(layout.nbytes)

    @classmethod
    def of(cls, packed: Tensor, channels: int, groups: int, workspace: Workspace, expand: Expand) -> Self | None:
        """Stores packed weights of up to 4 bits; None if their order is unknown.

        Args:
            packed: Weights in the layout of the kernels.
            channels: Output channels.
            groups: Groups of the convolution; 1 for linear layers.
            workspace: Memory to expand them in.
            expand: Kernel that expands them.
        """
        layout, stored = Layout.of(packed), opaque_bytes(packed)
        for arrangement in arrangements(channels, groups):
            if nibbles := to_nibbles(stored, arrangement):
                return cls(nibbles, layout, workspace, expand)
        return None

    def packed(self) -> AbstractContextManager[Tensor]:
        """Lends the workspace with the weights in it."""
        return self._workspace.filled(self._layout, partial(self._expand, self._nibbles()))

    def signed(self) -> Tensor:
        """Returns the weights less their zero points, (C_out, ...) int8."""
        own = torch.empty(self._layout.nbytes, dtype=torch.uint8, device=self.stored.device)
        self._expand(self._nibbles(), own)
        return _signed(wrap(own, self._layout)).clone()

    def _nibbles(self) -> Nibbles:
        return Nibbles(self.stored, *self._rest)


class PlainNibbleWeights:
    """Weights stored two in a byte and laid out at every call, which is slow."""

    def __init__(self, weight: QuantizedWeight, pack: Pack, expand: Expand) -> None:
        signed = signed_bytes(weight)
        assert signed is not None
        self._shape = signed.shape
        nibbles = to_nibbles(signed.flatten(1).t().flatten(), Arrangement(1, len(signed)))
        assert nibbles is not None, "weights of up to 4 bits"
        self.stored, self._rest = IntegerWeight(nibbles.packed), nibbles[1:]
        self._pack, self._expand = pack, expand

    def packed(self) -> AbstractContextManager[Tensor]:
        """Lends the weights in the layout of the kernels."""
        return nullcontext(self._pack(self.signed()))

    def signed(self) -> Tensor:
        """Returns the weights less their zero points, (C_out, ...) int8."""
        out = torch.empty(self._shape.numel(), dtype=torch.uint8, device=self.stored.device)
        self._expand(Nibbles(self.stored, *self._rest), out)
        rows = out.view(torch.int8).view(-1, self._shape[0]).t()
        return rows.contiguous().view(self._shape)


def _signed(packed: Tensor) -> Tensor:
    dense = packed.to_dense()
    return dense.t() if dense.dim() == 2 else dense  # linear weights are stored transposed


def arrangements(channels: int, groups: int) -> Iterator[Arrangement]:
    """Lists the orders that oneDNN's layouts may have.

    Most have blocks of output channels, one after another, whose rows are a few inputs of each channel. Sums of each
    channel's weights may follow, by which oneDNN accounts for zero points. Those of depthwise convolutions, and those
    that processors without AVX-512 have, have one input in a row, of some channels or of all.
    """
    for width in _CHANNELS:
        blocks = groups * -(-channels // groups // width)
        for sums in (0, blocks * width * _TOGETHER):
            yield Arrangement(blocks, width * _TOGETHER, sums)
    for width in (*_CHANNELS, 1):
        blocks = -(-channels // width)
        yield Arrangement(1, blocks * width)
        yield Arrangement(blocks, width)
