"""Weights of networks that run once per image: they stay packed in memory and are dequantized for each call.

Packed integers are buffers, so that a network moves between devices. A lowered network keeps the dtypes of buffers.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bitbrush.network.extension import Extension, extend_
from bitbrush.network.lazy_weights import weight_shape
from bitbrush.numerics.packing import pack, unpack
from bitbrush.numerics.weights import QuantizedWeight, WeightQParams


class _PackedTensors(nn.Module):
    """Packed integers with a scale and a zero point for each row."""

    packed_weight: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor
    weight_bits: int

    def hold(self, weight: QuantizedWeight) -> None:
        """Registers the tensors of ``weight``."""
        self.weight_bits = weight.qparams.bits
        self.register_buffer("packed_weight", pack(weight.w_q, self.weight_bits), persistent=False)
        self.register_buffer("weight_scale", weight.qparams.scale, persistent=False)
        self.register_buffer("weight_zero_point", weight.qparams.zero_point, persistent=False)

    def _qparams(self, rows: Any = slice(None)) -> WeightQParams:
        return WeightQParams(self.weight_scale[rows], self.weight_zero_point[rows], self.weight_bits)


class PackedLayer(Extension, _PackedTensors):
    """Extension of a Conv2d or Linear whose ``weight`` is dequantized to float32 by each access."""

    @property
    def weight(self) -> Tensor:
        """Weight in float32."""
        w_q = unpack(self.packed_weight, self.weight_bits, weight_shape(self))
        return QuantizedWeight(w_q, self._qparams()).dequantize()


class PackedEmbedding(_PackedTensors):
    """Embedding of packed integers; only the rows that a call looks up are dequantized.

    Args:
        weight: Integers (rows, width) of 8 bits.
        dtype: Dtype of the output.
    """

    def __init__(self, weight: QuantizedWeight, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.w_q.shape
        self.dtype = dtype
        self.hold(weight)

    def forward(self, indices: Tensor) -> Tensor:
        """Looks rows up, (..., width)."""
        rows = indices.reshape(-1)
        w_q = self.packed_weight.view(self.num_embeddings, self.embedding_dim)[rows]
        values = QuantizedWeight(w_q, self._qparams(rows)).dequantize().to(self.dtype)
        return values.view(*indices.shape, self.embedding_dim)


def set_packed_weight(layer: nn.Module, weight: QuantizedWeight, bias: Tensor | None) -> None:
    """Replaces the weight of a Conv2d or Linear by packed integers, and its bias unless that is None."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    layer.register_parameter("weight", None)
    del layer._parameters["weight"]
    extend_(layer, PackedLayer)
    assert isinstance(layer, PackedLayer)
    layer.hold(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
