"""Integer weights in oneDNN's layouts."""

from collections.abc import Callable
from enum import StrEnum
from typing import Protocol, TypeAlias

from torch import Tensor

from bitbrush.numerics.weights import QuantizedWeight
from bitbrush.runtime.integer_weight import IntegerWeight
from bitbrush.runtime.nibbles import to_nibbles
from bitbrush.runtime.tools import Unpack

Pack: TypeAlias = Callable[[Tensor], Tensor]
"""Converts signed bytes (C_out, C_in, ...) to oneDNN's own layout."""


class Memory(StrEnum):
    """Storage of weights in memory."""

    EXPANDED = "expanded"
    """Single byte per weight, packed once."""
    LOW = "low"
    """Half a byte per weight of up to 4 bits, expanded at every call of its layer, which costs time.

    Networks that are not quantized also keep the dtype that they are stored in.
    """


class Weights(Protocol):
    """Weights of a layer; ``stored`` is the form kept in memory."""

    stored: IntegerWeight

    def packed(self) -> Tensor:
        """Returns the weights in the layout of the kernels."""
        ...

    def signed(self) -> Tensor:
        """Returns the weights less their zero points, (C_out, ...) int8."""
        ...


class ExpandedWeights:
    """Weights stored in the layout of the kernels."""

    def __init__(self, signed: Tensor, pack: Pack) -> None:
        self.stored = IntegerWeight(pack(signed))

    def packed(self) -> Tensor:
        """Returns the stored weights."""
        return self.stored

    def signed(self) -> Tensor:
        """Returns the weights less their zero points, (C_out, ...) int8."""
        dense = self.stored.to_dense()
        return dense.t() if dense.dim() == 2 else dense  # linear weights are stored transposed


class NibbleWeights:
    """Weights stored two in a byte and packed at every call."""

    def __init__(self, weight: QuantizedWeight, pack: Pack, unpack: Unpack) -> None:
        self._shape = weight.w_q.shape
        self.stored = IntegerWeight(to_nibbles(weight.w_q.flatten(1)))
        self._zero_point = weight.qparams.zero_point
        self._pack, self._unpack = pack, unpack

    def packed(self) -> Tensor:
        """Expands the weights to the layout of the kernels."""
        return self._pack(self.signed())

    def signed(self) -> Tensor:
        """Returns the weights less their zero points, (C_out, ...) int8."""
        columns = self._shape[1:].numel()
        return self._unpack(self.stored, self._zero_point, columns).view(self._shape)
