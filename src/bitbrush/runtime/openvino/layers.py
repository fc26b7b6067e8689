"""Quantized layers written in torch operators, in the one form that OpenVINO turns into integer kernels.

With ``x_c = x_q - center``, which lies in [-center, 2^bits - 1 - center], ``center`` a constant, and the step's own
``offset = zero_point - center``:

    y = scale * (conv(x_c, w) - offset * sum(w)) + bias,    x_c = clamp(round(x / scale) + offset)

1/scale, offset and scale are inputs of the graph, because OpenVINO keeps integers only where the range of a
FakeQuantize is constant. Its kernels take a constant zero point such as ``center`` for nothing. The nearer it is to
the step's, the less cancels in the subtraction, which matters where results are stored as bfloat16.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitbrush.network.inputs import row_dimensions
from bitbrush.network.layers import QuantizedLayer
from bitbrush.numerics.affine import AffineGrid
from bitbrush.numerics.dynamic import fake_quantize_rows
from bitbrush.timeline.schedule import ActivationSchedule

BYTE = 8

Row: TypeAlias = tuple[float, float, float]
"""1/scale, offset and scale of one layer at one step."""


@dataclass(frozen=True)
class Form:
    """What of a layer is constant in a graph: ``bits`` of its activations, its center, whether all offsets are 0."""

    bits: int
    center: int
    centered: bool

    @property
    def low_bits(self) -> int:
        """Of more than 8 bits the lower ones are multiplied by themselves."""
        return max(self.bits - BYTE, 0)

    @classmethod
    def of(cls, grids: Sequence[AffineGrid], bits: int) -> "Form":
        """For all the grids that have so many bits."""
        zero_points = sorted(grid.zero_point for grid in grids if grid.bits == bits)
        low_bits = max(bits - BYTE, 0)
        center = zero_points[len(zero_points) // 2] >> low_bits << low_bits
        return cls(bits, center, zero_points[0] == zero_points[-1] == center and not low_bits)

    def row(self, grid: AffineGrid) -> Row:
        inverse = float(torch.tensor(grid.scale, dtype=torch.float32).reciprocal())
        return inverse, float(grid.zero_point - self.center), grid.scale


@dataclass
class Step:
    """What the layers read while the graph is made of them: their forms, and tensors (1,) in place of their rows."""

    forms: Sequence[Form] = ()
    rows: Sequence[Sequence[Tensor]] = ()


@dataclass(frozen=True)
class Product:
    """The sums of products of a Conv2d, or a Linear where ``stride`` is None, without bias."""

    stride: tuple[int, ...] | None = None
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1

    @classmethod
    def of(cls, layer: nn.Conv2d | nn.Linear) -> "Product":
        if isinstance(layer, nn.Linear):
            return cls()
        assert isinstance(layer.padding, tuple)
        return cls(layer.stride, layer.padding, layer.dilation, layer.groups)

    @property
    def per_channel(self) -> tuple[int, ...]:
        """The shape of a vector (C_out,) that is added to the results."""
        return (-1,) if self.stride is None else (-1, 1, 1)

    def pad(self, x: Tensor) -> Tensor:
        """With zeros, as the convolution would."""
        rows, columns = self.padding
        return F.pad(x, (columns, columns, rows, rows)) if rows or columns else x

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.stride is None:
            return F.linear(x, weight)
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)


class OpenVinoLayer(nn.Module):
    """Stands where a Conv2d or Linear was. ``index``: its place among the layers of a :class:`Step`."""

    def __init__(self, layer: QuantizedLayer, index: int, step: Step) -> None:
        super().__init__()
        self.name = layer.name
        self.schedule = layer.schedule
        self._index, self._step = index, step

    def form(self, bits: int) -> Form:
        """Of steps of so many bits."""
        raise NotImplementedError

    def _now(self) -> tuple[Form, Sequence[Tensor]]:
        return self._step.forms[self._index], self._step.rows[self._index]


class IntegerLayer(OpenVinoLayer):
    """Multiplies unsigned by signed bytes; activations of more than 8 bits in two products, which are exact."""

    scale: Tensor
    sums: Tensor
    bias: Tensor | None

    def __init__(
        self, original: nn.Conv2d | nn.Linear, layer: QuantizedLayer, signed: Tensor, *, index: int, step: Step
    ) -> None:
        super().__init__(layer, index, step)
        scale = layer.weight.grid.scale
        self._product = Product.of(original)
        self.weight = nn.Parameter(signed, requires_grad=False)
        # A name of its own for the same memory: of two products with one weight OpenVINO keeps one in integers.
        self.weight_again = nn.Parameter(self.weight.detach(), requires_grad=False)
        self.register_buffer("scale", scale.clone())
        self.register_buffer("sums", signed.flatten(1).sum(1, dtype=torch.int64).to(torch.float32) * scale)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.clone())

    def form(self, bits: int) -> Form:
        return Form.of(self.schedule.grids, bits)

    def forward(self, x: Tensor) -> Tensor:
        form, (inverse, offset, scale) = self._now()
        product = self._product
        if not form.centered:
            # Zeros become the step's zero point, which the kernel, knowing the center alone, could not pad with.
            x, product = product.pad(x), replace(product, padding=(0, 0))
        if form.low_bits:
            high, low, unit = _digits(x * inverse, offset, form)
            y = (product(high, self._float(self.weight)) * unit + product(low, self._float(self.weight_again))) * scale
        else:
            x = x * inverse if form.centered else x * inverse + offset
            y = product(_bytes(x, form), self._float(self.weight)) * scale
        bias = self.bias
        if not form.centered:
            correction = offset * scale * self.sums
            bias = -correction if bias is None else bias - correction
        return y if bias is None else y + bias.view(product.per_channel)

    def _float(self, weight: Tensor) -> Tensor:
        return weight.float() * self.scale.view(-1, *(1,) * (weight.dim() - 1))


def _digits(x: Tensor, offset: Tensor, form: Form) -> tuple[Tensor, Tensor, int]:
    """``x_c = high unit + low`` of ``x`` in units of the scale; ``low`` is not negative."""
    unit = 1 << form.low_bits
    x_c = torch.clamp(torch.round(x) + offset, -form.center, (1 << form.bits) - 1 - form.center)
    high = torch.floor(x_c * (1 / unit))
    low = _bytes(x_c - high * unit, Form(BYTE, 0, centered=True))
    return _bytes(high, Form(BYTE, form.center >> form.low_bits, centered=True)), low, unit


class FloatLayer(OpenVinoLayer):
    """Multiplies what the integers represent: for layers with an :func:`obstacle`."""

    def __init__(self, original: nn.Conv2d | nn.Linear, layer: QuantizedLayer, *, index: int, step: Step) -> None:
        super().__init__(layer, index, step)
        self._original = original
        original.weight = nn.Parameter(layer.weight.dequantize(), requires_grad=False)
        original.bias = None if layer.bias is None else nn.Parameter(layer.bias, requires_grad=False)

    def form(self, bits: int) -> Form:
        return Form(bits, 0, centered=False)

    def forward(self, x: Tensor) -> Tensor:
        form, (inverse, zero_point, scale) = self._now()
        x_q = torch.round(x * inverse) + zero_point
        y: Tensor = self._original((torch.clamp(x_q, 0, (1 << form.bits) - 1) - zero_point) * scale)
        return y


class DynamicLayer(FloatLayer):
    """Likewise, on grids of the input's own extremes; what a step would tell is not read."""

    def __init__(
        self, original: nn.Conv2d | nn.Linear, layer: QuantizedLayer, bits: int, *, index: int, step: Step
    ) -> None:
        unread = ActivationSchedule.static(AffineGrid(1.0, 0, bits))
        super().__init__(original, replace(layer, activations=unread), index=index, step=step)
        self._bits, self._within = bits, row_dimensions(original)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._original(fake_quantize_rows(x.float(), self._bits, within=self._within))
        return y


def _bytes(x: Tensor, form: Form) -> Tensor:
    """``clamp(round(x), -center, 2^bits - 1 - center)`` as a FakeQuantize of 256 levels, however few are used."""
    if form.bits < BYTE:
        x = torch.clamp(x, -form.center, (1 << form.bits) - 1 - form.center)
    return torch.fake_quantize_per_tensor_affine(x, 1.0, 0, -form.center, 255 - form.center)
