"""Integer Conv2d and Linear on the GPU."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bitbrush.runtime.cuda.fused_ops import (
    NO_BORDER,
    Border,
    CudaFusedOps,
    DeviceBytes,
)
from bitbrush.runtime.cuda.steps import StepQParams
from bitbrush.runtime.cuda.weights import Weights
from bitbrush.runtime.integer_weight import IntegerParameters, IntegerWeight


class IntegerLayer(IntegerParameters):
    """Integer layer: ``y = scale w_scale sum((x_q - zero_point) w) + bias``, summed exactly and rounded once.

    Kernels read the quantization parameters of the step on the device. Results have the dtype of the layer's input.
    """

    border: Border = NO_BORDER
    is_image = False

    def __init__(self, weights: Weights, qparams: StepQParams, fused_ops: CudaFusedOps) -> None:
        super().__init__()
        self.qparams, self._fused_ops = qparams, fused_ops
        self.weights = weights
        self.show(IntegerWeight(weights.data), weights.scale, weights.bias, count=weights.count)
        self._split = weights.overflows(qparams.most_bits)

    def share(self, data: Tensor) -> None:
        """Replaces the integers by equal ones, a view of another layer's."""
        self.weights = replace(self.weights, data=data)
        self.integer_weight.data = data

    def forward(self, x: Tensor) -> Tensor:
        """Computes the layer on floating-point input; the output has its dtype."""
        return self.multiply(self.quantize(x), x.dtype)

    def quantize(self, x: Tensor, *, upsample: int = 1) -> DeviceBytes:
        """Quantizes and pads the input for :meth:`multiply`."""
        return self._fused_ops.quantize(x, self.qparams, padding=self.border, upsample=upsample)

    def multiply(self, x: DeviceBytes, dtype: torch.dtype, residual: Tensor | None = None) -> Tensor:
        """Multiplies quantized input by the weights and adds the bias and ``residual`` of the output's shape."""
        raise NotImplementedError

    def multiply_gated(self, x: DeviceBytes, qparams: StepQParams, dtype: torch.dtype) -> DeviceBytes:
        """Quantizes ``value * gelu(gate)`` by another layer's ``qparams``, for the halves of :meth:`multiply`."""
        return self._fused_ops.geglu(self.multiply(x, dtype), qparams)

    def _product(
        self, high: Tensor, low: Tensor | None, geometry: tuple[int, ...], dtype: torch.dtype, residual: Tensor | None
    ) -> Tensor:
        own, qparams = self.weights, self.qparams
        y: Tensor = self._fused_ops.ops.integer_product(
            *(high, low, own.data, own.zero_points, own.sums, own.scale, own.bias, residual),
            *(qparams.scales, qparams.integers, geometry, self._split, dtype),
        )
        return y


class IntegerConv2d(IntegerLayer):
    """Integer convolution; the fused ops pad with zero points while they quantize."""

    is_image = True

    def __init__(self, conv: nn.Conv2d, *args: Any) -> None:
        super().__init__(*args)
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        assert isinstance(conv.padding, tuple)
        height, width = conv.padding
        self.border = height, width
        self._fixed = *conv.kernel_size, *conv.stride, *conv.dilation, conv.groups
        self._reach = [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        self._stride = conv.stride

    def multiply(self, x: DeviceBytes, dtype: torch.dtype, residual: Tensor | None = None) -> Tensor:
        """Convolves quantized, padded input; see :meth:`IntegerLayer.multiply`."""
        height, width = (
            (size - reach) // stride + 1
            for size, reach, stride in zip(x.high.shape[1:3], self._reach, self._stride, strict=True)
        )
        other = None if residual is None else residual.permute(0, 2, 3, 1).contiguous()
        return self._product(x.high, x.low, (height, width, *self._fixed), dtype, other).permute(0, 3, 1, 2)


class IntegerLinear(IntegerLayer):
    """Integer linear layer, computed as a 1x1 convolution over an image of one line."""

    def __init__(self, in_features: int, weights: Weights, qparams: StepQParams, fused_ops: CudaFusedOps) -> None:
        super().__init__(weights, qparams, fused_ops)
        self.in_features, self.out_features = in_features, len(weights.scale)

    def with_weights(self, weights: Weights) -> "IntegerLinear":
        """Builds another layer of the same input."""
        return IntegerLinear(self.in_features, weights, self.qparams, self._fused_ops)

    def quantize(self, x: Tensor, *, upsample: int = 1) -> DeviceBytes:
        """Quantizes tokens (..., C_in) for :meth:`multiply`; ``upsample`` must be 1."""
        assert upsample == 1, "tokens are not magnified"
        rows = self._fused_ops.quantize(x.reshape(1, -1, self.in_features), self.qparams)
        low = None if rows.low is None else rows.low.view(x.shape)
        return DeviceBytes(rows.high.view(x.shape), low, rows.qparams)

    def multiply(self, x: DeviceBytes, dtype: torch.dtype, residual: Tensor | None = None) -> Tensor:
        """Multiplies quantized tokens; see :meth:`IntegerLayer.multiply`."""
        high = x.high.view(1, 1, -1, self.in_features)
        low = None if x.low is None else x.low.view(high.shape)
        rows = high.shape[2]
        other = None if residual is None else residual.reshape(1, 1, rows, self.out_features).contiguous()
        y = self._product(high, low, (1, rows, 1, 1, 1, 1, 1, 1, 1), dtype, other)
        return y.view(*x.high.shape[:-1], self.out_features)

    def multiply_gated(self, x: DeviceBytes, qparams: StepQParams, dtype: torch.dtype) -> DeviceBytes:
        """Computes product and gate in one kernel, so that outputs are neither rounded to ``dtype`` nor stored."""
        own = self.weights
        high, low = self._fused_ops.ops.gated_product(
            *(x.high, x.low, own.data, own.zero_points, own.sums, own.scale, own.bias),
            *(self.qparams.scales, self.qparams.integers, qparams.scales, qparams.integers, self._split, qparams.wide),
        )
        return DeviceBytes(high, low if qparams.wide else None, qparams)
