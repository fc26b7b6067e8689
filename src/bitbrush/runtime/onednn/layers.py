"""Integer Conv2d and Linear: u8 activations times s8 weights, summed in int32, by oneDNN."""

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
"""Sums of a linear layer computed at a time for activations of more than 8 bits: 4 MiB of float32."""

GATED_AT_ONCE = 1 << 22
"""Values of a linear layer computed at a time before half of them gate the others: 8 MiB of bfloat16."""


class Factors(NamedTuple):
    """Packed weights and input scale that multiply quantized inputs; results have ``dtype``."""

    packed: Tensor
    scale: float
    bias: Tensor | None
    dtype: torch.dtype


class FoldedBias:
    """Bias of a layer with the term of its input's zero point, cached from one call of a step to the next.

    Args:
        sums: Sums of each output channel's weights times the weight scale, (C_out,) float32.
    """

    def __init__(self, sums: Tensor) -> None:
        self._sums = sums
        self._known: tuple[QParams, BiasState, Tensor] | None = None

    def at(self, qparams: QParams, bias: Tensor | None) -> Tensor:
        """Computes ``bias - scale * zero_point * sums``."""
        known = self._known  # read once: another thread may run another step
        state = BiasState.of(bias)
        if known is None or known[0] is not qparams or known[1] != state:
            zero = -qparams.scale * qparams.zero_point
            folded = self._sums * zero if bias is None else torch.add(bias, self._sums, alpha=zero)
            self._known = known = qparams, state, folded
        return known[2]


class IntegerLayer(IntegerParameters):
    """Integer layer: ``y = scale w_scale (sum(x_q w) - zero_point sum(w)) + bias`` with ``w = w_q - w_zero_point``.

    The first sum is oneDNN's, exact in int32. The zero point's term is constant per channel and step, and is folded
    into the bias. With a zero point of its own, oneDNN would lay out a convolution's weights anew in every call.
    Activations of more than 8 bits are two products, ``256 sum(high w) + sum(low w)``, added in float32.

    Quantization parameters are the schedule's at the timestep of the running call. Results have the dtype of the
    layer's input.
    """

    border: int

    def __init__(self, layer: QuantizedLayer, column_sums: Tensor, weights: Weights, fused_ops: FusedOps) -> None:
        super().__init__()
        self.schedule = layer.schedule
        self._weights, self._fused_ops = weights, fused_ops
        self._scale = layer.weight.qparams.scale
        self.show(weights.stored, self._scale, layer.bias, count=layer.weight.w_q.numel())
        self._zero_points = torch.zeros_like(self._scale, dtype=torch.int32)
        self._folded = FoldedBias(column_sums * self._scale)

    @property
    def qparams(self) -> QParams:
        """Current quantization parameters of the input."""
        return self.schedule.now()

    def multiply(self, x: Bytes, dtype: torch.dtype, residual: Tensor | None = None) -> Tensor:
        """Multiplies quantized input by the weights and adds the bias and ``residual`` of the output's shape."""
        with self._weights.packed() as packed:
            return self._multiply(packed, x, dtype, residual)

    def multiply_gated(self, x: Bytes, qparams: QParams, dtype: torch.dtype) -> Bytes:
        """Quantizes ``value * gelu(gate)`` by another layer's ``qparams``, for the halves of :meth:`multiply`."""
        return self._fused_ops.geglu(self.multiply(x, dtype), qparams)

    def _multiply(self, packed: Tensor, x: Bytes, dtype: torch.dtype, residual: Tensor | None = None) -> Tensor:
        by = Factors(packed, x.qparams.scale, self._folded.at(x.qparams, self.bias), dtype)
        if x.low is None:
            return self._product(x.high, by, residual)
        return self._two_products(x.high, x.low, by, residual)

    def _two_products(self, high: Tensor, low: Tensor, by: Factors, residual: Tensor | None) -> Tensor:
        y = self._product(high, by._replace(scale=by.scale * (1 << BYTE), dtype=torch.float32), None)
        y = self._add_product(low, by._replace(bias=None, dtype=torch.float32), y)
        return (y if residual is None else y.add_(residual)).to(by.dtype)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, *args: Any) -> None:
        """Saves the integers in a plain layout."""
        super()._save_to_state_dict(destination, prefix, *args)
        destination[f"{prefix}integer_weight"] = self._weights.signed()

    def _product(self, x: Tensor, by: Factors, residual: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _add_product(self, x: Tensor, by: Factors, y: Tensor) -> Tensor:
        """Adds a product to ``y``, which may be overwritten."""
        return self._product(x, by, y)

    def _linear_product(self, rows: Tensor, by: Factors, residual: Tensor | None) -> Tensor:
        """Multiplies (rows, C_in) by the weights and adds ``residual`` (rows, C_out)."""
        factors = by.scale, 0, by.packed, self._scale, self._zero_points
        if residual is None:
            y: Tensor = torch.ops.onednn.qlinear_pointwise(rows, *factors, by.bias, 1.0, 0, by.dtype, "none", [], "")
        else:
            y = torch.ops.onednn.qlinear_pointwise.binary(
                rows, *factors, residual, by.bias, 1.0, 0, by.dtype, 1.0, 0, "add", 1.0, "none", [], ""
            )
        return y


class IntegerConv2d(IntegerLayer):
    """Integer convolution; the fused ops pad with zero points while they quantize."""

    is_image = True

    def __init__(self, conv: nn.Conv2d, *args: Any) -> None:
        super().__init__(*args)
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        assert isinstance(conv.padding[0], int)
        self.border: int = conv.padding[0]
        self._geometry = _geometry(conv)

    @not_compiled
    def forward(self, x: Tensor) -> Tensor:
        """Computes the layer on floating-point input; the output has its dtype."""
        return self.multiply(self.quantize(x), x.dtype)

    def quantize(self, x: Tensor, *, upsample: int = 1) -> Bytes:
        """Quantizes and pads the input for :meth:`multiply`."""
        return self._fused_ops.quantize(x, self.qparams, padding=self.border, upsample=upsample)

    def _product(self, x: Tensor, by: Factors, residual: Tensor | None) -> Tensor:
        factors = by.scale, 0, by.packed, self._scale, self._zero_points
        y: Tensor = torch.ops.onednn.qconv2d_pointwise(
            x, *factors, by.bias, *self._geometry, 1.0, 0, by.dtype, "none", [], ""
        )
        return y if residual is None else y.add_(residual)

    def _two_products(self, high: Tensor, low: Tensor, by: Factors, residual: Tensor | None) -> Tensor:
        """Computes large images one by one, for the same reason as :class:`IntegerLinear`."""
        if len(high) == 1 or self.out_channels * high[0, 0].numel() < ONE_GO:
            return super()._two_products(high, low, by, residual)
        residuals = [None] * len(high) if residual is None else residual.split(1)
        images = zip(high.split(1), low.split(1), residuals, strict=True)
        return torch.cat([super(IntegerConv2d, self)._two_products(*image[:2], by, image[2]) for image in images])

    def _add_product(self, x: Tensor, by: Factors, y: Tensor) -> Tensor:
        factors = by.scale, 0, by.packed, self._scale, self._zero_points
        result: Tensor = torch.ops.onednn.qconv2d_pointwise.binary(
            x, *factors, y, by.bias, *self._geometry, 1.0, 0, by.dtype, 1.0, 0, "sum", 1.0, "none", [], ""
        )
        return result


class IntegerPointwiseConv2d(IntegerConv2d):
    """1x1 convolution as a Linear over pixels, which lie in memory as tokens do."""

    def _product(self, x: Tensor, by: Factors, residual: Tensor | None) -> Tensor:
        other = None if residual is None else _rows(residual)
        y = self._linear_product(_rows(x), by, other)
        return y.view(len(x), *x.shape[2:], self.out_channels).permute(0, 3, 1, 2)

    def _add_product(self, x: Tensor, by: Factors, y: Tensor) -> Tensor:
        return self._product(x, by, y)


class IntegerLinear(IntegerLayer):
    """Integer linear layer over tokens (..., C_in)."""

    is_image = False
    border = 0

    def __init__(self, linear: nn.Linear, *args: Any) -> None:
        super().__init__(*args)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._rows_at_once = max(ONE_GO // linear.out_features, 1)

    @not_compiled
    def forward(self, x: Tensor) -> Tensor:
        """Computes the layer on floating-point input; the output has its dtype."""
        return self.multiply(self.quantize(x), x.dtype)

    def multiply_gated(self, x: Bytes, qparams: QParams, dtype: torch.dtype) -> Bytes:
        """Computes some rows at a time: the values of all would be the largest tensor of a denoiser."""
        at_once = max(GATED_AT_ONCE // self.out_features, 1)
        with self._weights.packed() as packed:
            parts = [
                self._fused_ops.geglu(self._multiply(packed, rows, dtype), qparams)
                for rows in x.view(-1, self.in_features).split(at_once)
            ]
        return Bytes.join(parts).view(*x.high.shape[:-1], self.out_features // 2)

    def quantize(self, x: Tensor, *, upsample: int = 1) -> Bytes:
        """Quantizes the input for :meth:`multiply`; ``upsample`` must be 1."""
        assert upsample == 1, "tokens are not magnified"
        return self._fused_ops.quantize(x, self.qparams)

    def _product(self, x: Tensor, by: Factors, residual: Tensor | None) -> Tensor:
        other = None if residual is None else residual.reshape(-1, self.out_features)
        y = self._linear_product(x.reshape(-1, self.in_features), by, other)  # tokens may be permuted
        return y.view(*x.shape[:-1], self.out_features)

    def _two_products(self, high: Tensor, low: Tensor, by: Factors, residual: Tensor | None) -> Tensor:
        """Computes some rows at a time: the float32 sums of all would take four times the memory of an 8-bit result."""
        out = high.new_empty(*high.shape[:-1], self.out_features, dtype=by.dtype)
        rows = out.view(-1, self.out_features)
        parts = [x.reshape(len(rows), -1).split(self._rows_at_once) for x in (rows, high, low)]
        others = [None] * len(parts[0]) if residual is None else residual.reshape(rows.shape).split(self._rows_at_once)
        for y, part, low_part, other in zip(*parts, others, strict=True):
            y.copy_(super()._two_products(part, low_part, by, other))
        return out


def is_pointwise(conv: nn.Conv2d) -> bool:
    """Whether a convolution is 1x1 with stride 1, no padding and one group."""
    return conv.kernel_size == conv.stride == (1, 1) and conv.padding == (0, 0) and conv.groups == 1


def pack_conv(conv: nn.Conv2d, scale: Tensor, signed: Tensor) -> Tensor:
    """Packs the signed weights of a convolution whose input is already padded."""
    packed: Tensor = torch.ops.onednn.qconv_prepack(signed, scale, 1.0, 0, *_geometry(conv), None)
    return packed


def pack_linear(signed: Tensor) -> Tensor:
    """Packs the signed weights (C_out, C_in) of a linear layer."""
    packed: Tensor = torch.ops.onednn.qlinear_prepack(signed.flatten(1), None)
    return packed


def _geometry(conv: nn.Conv2d) -> tuple[list[int], list[int], list[int], int]:
    """Returns stride, padding, dilation and groups; the padding is 0, since the input is already padded."""
    return list(conv.stride), [0, 0], list(conv.dilation), conv.groups


def _rows(x: Tensor) -> Tensor:
    """Views the pixels of a channels-last image (N, C, H, W) as rows (NHW, C)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
