"""Integer weights in the layouts that oneDNN multiplies with."""

from collections.abc import Callable
from enum import StrEnum
from typing import Protocol, TypeAlias

from torch import Tensor

from bitbrush.numerics.weights import QuantizedWeight
from bitbrush.runtime.integer_weight import IntegerWeight
from bitbrush.runtime.nibbles import to_nibbles
from bitbrush.runtime.tools import Unpack

Pack: TypeAlias = Callable[[Tensor], Tensor]
"""From signed bytes (C_out, C_in, ...) to oneDNN's own layout."""


class Memory(StrEnum):
    """What is kept of the weights in memory."""

    EXPANDED = "expanded"
    """A byte for each, laid out once."""
    LOW = "low"
    """Half a byte for each weight of up to 4 bits; expanded for every call of its layer, which costs time.

    Networks that are not quantized keep the type that they are stored in, likewise.
    """


class Weights(Protocol):
    """Weights of a layer.

    ``stored``: as they are kept. ``packed()``: as the kernels take them. ``signed()``: (C_out, ...) int8, less their
    zero points.
    """

    stored: IntegerWeight

    def packed(self) -> Tensor: ...

    def signed(self) -> Tensor: ...


class ExpandedWeights:
    def __init__(self, signed: Tensor, pack: Pack) -> None:
        self.stored = IntegerWeight(pack(signed))

    def packed(self) -> Tensor:
        return self.stored

    def signed(self) -> Tensor:
        dense = self.stored.to_dense()
        return dense.t() if dense.dim() == 2 else dense  # linear layers' are kept as columns


class NibbleWeights:
    def __init__(self, weight: QuantizedWeight, pack: Pack, unpack: Unpack) -> None:
        self._shape = weight.w_q.shape
        self.stored = IntegerWeight(to_nibbles(weight.w_q.flatten(1)))
        self._zero_point = weight.qparams.zero_point
        self._pack, self._unpack = pack, unpack

    def packed(self) -> Tensor:
        return self._pack(self.signed())

    def signed(self) -> Tensor:
        columns = self._shape[1:].numel()
        return self._unpack(self.stored, self._zero_point, columns).view(self._shape)
