"""Integer layers with activation ranges computed at run time."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitbrush.network.compiling import not_compiled
from bitbrush.network.inputs import row_dimensions
from bitbrush.network.layers import QuantizedLayer
from bitbrush.network.lazy_weights import show_widths_
from bitbrush.numerics.affine import QParams
from bitbrush.numerics.dynamic import TokenQParams, quantize_rows
from bitbrush.runtime.fused_ops import Bytes, memory_format
from bitbrush.runtime.integer_weight import WithoutFloatWeight
from bitbrush.runtime.onednn.layers import IntegerLayer
from bitbrush.timeline.schedule import ActivationSchedule


class DynamicLayer(WithoutFloatWeight):
    """Layer with dynamic ranges: ``y = scale (w_scale sum(x_q w) - zero_point w_scale sum(w)) + bias``.

    Scale and zero point are those of each row. ``product`` computes ``w_scale sum(x_q w)`` of the integers.
    Quantization takes several passes over the input by torch's operators, and nothing is fused with it. So the layer is
    slower than one with scheduled ranges.
    """

    bias: Tensor | None

    def __init__(
        self, original: nn.Conv2d | nn.Linear, layer: QuantizedLayer, column_sums: Tensor, product: IntegerLayer
    ) -> None:
        super().__init__()
        show_widths_(self, original)
        self._within = row_dimensions(original)
        per_channel = (-1,) if isinstance(original, nn.Linear) else (-1, 1, 1)
        self._sums = (column_sums * layer.weight.qparams.scale).view(per_channel)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.view(per_channel))
        self.product = product

    @not_compiled
    def forward(self, x: Tensor) -> Tensor:
        """Computes the layer on floating-point input; the output has its dtype."""
        qparams: QParams = self.product.schedule.qparams[0]
        border = self.product.border
        # Every range includes zero, so padding before quantization widens none and becomes each image's zero point.
        wide = F.pad(x.float(), (border,) * 4) if border else x.float()
        rows = TokenQParams.of(wide, qparams.bits, within=self._within)
        x_q = quantize_rows(wide, rows).to(torch.int32).contiguous(memory_format=memory_format(x))
        y = self.product.multiply(Bytes.of(x_q, qparams), torch.float32)
        y = (y - rows.zero_point * self._sums).mul_(rows.scale)
        return (y if self.bias is None else y.add_(self.bias)).to(x.dtype)


def as_product(layer: QuantizedLayer, bits: int) -> QuantizedLayer:
    """Strips the bias and sets input scale 1 and zero point 0, so that the layer multiplies plain integers."""
    return replace(layer, bias=None, activations=ActivationSchedule.static(QParams(1.0, 0, bits)))
