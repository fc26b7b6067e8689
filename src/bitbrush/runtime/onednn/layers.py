"""Conv2d and Linear in integers: u8 activations times s8 weights, summed in int32, by oneDNN."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bitbrush.network.compiling import not_compiled
from bitbrush.network.layers import QuantizedLayer
from bitbrush.numerics.affine import QParams
from bitbrush.runtime.fused_ops import BYTE, Bytes, FusedOps
from bitbrush.runtime.integer_weight import BiasState, IntegerParameters
from bitbrush.runtime.onednn.weights import Weights

ONE_GO = 1 << 20
"""So many sums of a linear layer with activations of more than 8 bits are computed at a time: 4 MiB of float32."""


class Factors(NamedTuple):
    """What quantized inputs are multiplied by: packed weights, and the inputs' scale. Results have the dtype."""

    packed: Tensor
    scale: float
    bias: Tensor | None
    dtype: torch.dtype


class IntegerLayer(IntegerParameters):
    """``y = scale w_scale (sum(x_q w) - zero_point sum(w)) + bias`` with ``w = w_q - w_zero_point``.

    The first sum is oneDNN's, exact in int32. What the zero point adds is constant per channel and step, and is folded
    into the bias: with a zero point of its own, oneDNN lays out a convolution's weights anew in every call. Activations
    of more than 8 bits are two products, ``256 sum(high w) + sum(low w)``, added in float32.

    The grid is the schedule's at the timestep of the running call. Results have the dtype of the layer's input.
    """

    border: int

    def __init__(self, layer: QuantizedLayer, column_sums: Tensor, weights: Weights, fused_ops: FusedOps) -> None:
        super().__init__()
        self.schedule = layer.schedule
        self._weights, self._fused_ops = weights, fused_ops
        self._scale = layer.weight.qparams.scale
        self.show(weights.stored, self._scale, layer.bias, count=layer.weight.w_q.numel())
        self._zero_points = torch.zeros_like(self._scale, dtype=torch.int32)
        self._sums = column_sums * self._scale
        self._folded: tuple[QParams, BiasState, Tensor] | None = None

    @property
    def qparams(self) -> QParams:
        """Of the input, now."""
        return self.schedule.now()

    def multiply(self, x: Bytes, dtype: torch.dtype, residual: Tensor | None = None) -> Tensor:
        """The layer's output for quantized input, ``residual`` of the output's shape added to it."""
        by = Factors(self._weights.packed(), x.qparams.scale, self._bias_at(x.qparams), dtype)
        if x.low is None:
            return self._product(x.high, by, residual)
        return self._two_products(x.high, x.low, by, residual)

    def multiply_gated(self, x: Bytes, qparams: QParams, dtype: torch.dtype) -> Bytes:
        """``value * gelu(gate)`` quantized on another layer's ``qparams``, of the halves of :meth:`multiply`."""
        return self._fused_ops.geglu(self.multiply(x, dtype), qparams)

    def _two_products(self, high: Tensor, low: Tensor, by: Factors, residual: Tensor | None) -> Tensor:
        y = self._product(high, by._replace(scale=by.scale * (1 << BYTE), dtype=torch.float32), None)
        y = self._product(low, by._replace(bias=None, dtype=torch.float32), y)
        return (y if residual is None else y.add_(residual)).to(by.dtype)

    def _bias_at(self, qparams: QParams) -> Tensor:
        folded = self._folded  # read once: another thread may run another step
        bias = BiasState.of(self)
        if folded is None or folded[0] is not qparams or folded[1] != bias:
            zeros = -qparams.scale * qparams.zero_point * self._sums
            self._folded = folded = qparams, bias, zeros if self.bias is None else self.bias + zeros
        return folded[2]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, *args: Any) -> None:
        """With the integers in a layout that can be saved."""
        super()._save_to_state_dict(destination, prefix, *args)
        destination[f"{prefix}integer_weight"] = self._weights.signed()

    def _product(self, x: Tensor, by: Factors, residual: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _linear_product(self, rows: Tensor, by: Factors, residual: Tensor | None) -> Tensor:
        """(rows, C_in) times the weights, ``residual`` (rows, C_out) added."""
        factors = by.scale, 0, by.packed, self._scale, self._zero_points
        if residual is None:
            y: Tensor = torch.ops.onednn.qlinear_pointwise(rows, *factors, by.bias, 1.0, 0, by.dtype, "none", [], "")
        else:
            y = torch.ops.onednn.qlinear_pointwise.binary(
                rows, *factors, residual, by.bias, 1.0, 0, by.dtype, 1.0, 0, "add", 1.0, "none", [], ""
            )
        return y


class IntegerConv2d(IntegerLayer):
    """Zero padding becomes a border of zero points around the quantized input, which the fused ops adds as it
    quantizes."""

    is_image = True

    def __init__(self, conv: nn.Conv2d, *args: Any) -> None:
        super().__init__(*args)
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        assert isinstance(conv.padding[0], int)
        self.border: int = conv.padding[0]
        self._geometry = _geometry(conv)

    @not_compiled
    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(self.quantize(x), x.dtype)

    def quantize(self, x: Tensor, *, upsample: int = 1) -> Bytes:
        """The input as :meth:`multiply` takes it, with its border."""
        return self._fused_ops.quantize(x, self.qparams, padding=self.border, upsample=upsample)

    def _product(self, x: Tensor, by: Factors, residual: Tensor | None) -> Tensor:
        factors = by.scale, 0, by.packed, self._scale, self._zero_points
        y: Tensor = torch.ops.onednn.qconv2d_pointwise(
            x, *factors, by.bias, *self._geometry, 1.0, 0, by.dtype, "none", [], ""
        )
        return y if residual is None else y.add_(residual)


class IntegerPointwiseConv2d(IntegerConv2d):
    """A 1x1 convolution is a Linear of the pixels, which lie in memory as tokens do."""

    def _product(self, x: Tensor, by: Factors, residual: Tensor | None) -> Tensor:
        other = None if residual is None else _rows(residual)
        y = self._linear_product(_rows(x), by, other)
        return y.view(len(x), *x.shape[2:], self.out_channels).permute(0, 3, 1, 2)


class IntegerLinear(IntegerLayer):
    is_image = False
    border = 0

    def __init__(self, linear: nn.Linear, *args: Any) -> None:
        super().__init__(*args)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._rows_at_once = max(ONE_GO // linear.out_features, 1)

    @not_compiled
    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(self.quantize(x), x.dtype)

    def quantize(self, x: Tensor, *, upsample: int = 1) -> Bytes:
        assert upsample == 1, "tokens are not magnified"
        return self._fused_ops.quantize(x, self.qparams)

    def _product(self, x: Tensor, by: Factors, residual: Tensor | None) -> Tensor:
        other = None if residual is None else residual.reshape(-1, self.out_features)
        y = self._linear_product(x.view(-1, self.in_features), by, other)
        return y.view(*x.shape[:-1], self.out_features)

    def _two_products(self, high: Tensor, low: Tensor, by: Factors, residual: Tensor | None) -> Tensor:
        """Some rows at a time: the float32 sums of all would take four times the memory of a plain step's result."""
        out = high.new_empty(*high.shape[:-1], self.out_features, dtype=by.dtype)
        rows = out.view(-1, self.out_features)
        parts = [x.view(len(rows), -1).split(self._rows_at_once) for x in (rows, high, low)]
        others = [None] * len(parts[0]) if residual is None else residual.reshape(rows.shape).split(self._rows_at_once)
        for y, part, low_part, other in zip(*parts, others, strict=True):
            y.copy_(super()._two_products(part, low_part, by, other))
        return out


def is_pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == conv.stride == (1, 1) and conv.padding == (0, 0) and conv.groups == 1


def pack_conv(conv: nn.Conv2d, scale: Tensor, signed: Tensor) -> Tensor:
    """The weights of a convolution whose input comes with its border."""
    packed: Tensor = torch.ops.onednn.qconv_prepack(signed, scale, 1.0, 0, *_geometry(conv), None)
    return packed


def pack_linear(signed: Tensor) -> Tensor:
    packed: Tensor = torch.ops.onednn.qlinear_prepack(signed.flatten(1), None)
    return packed


def _geometry(conv: nn.Conv2d) -> tuple[list[int], list[int], list[int], int]:
    """Stride, padding, dilation, groups; no padding, since the input brings it along."""
    return list(conv.stride), [0, 0], list(conv.dilation), conv.groups


def _rows(x: Tensor) -> Tensor:
    """The pixels of an image (N, C, H, W) in channels-last memory as rows (NHW, C)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
