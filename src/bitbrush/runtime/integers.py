"""Limits of the integer kernels of all runtimes, which multiply unsigned activation bytes by signed weight bytes."""

import torch
from torch import Tensor, nn

from bitbrush.network.layers import QuantizedLayer
from bitbrush.numerics.weights import QuantizedWeight
from bitbrush.timeline.schedule import DynamicRanges

MOST_PRODUCTS = (2**31 - 1) // (255 * 128)
"""Largest number of byte products whose sum fits into int32 for any bytes."""
SUMMED_AT_ONCE = 1 << 18
"""Weights that are widened to 64 bits at a time: 2 MiB."""


def signed_bytes(weight: QuantizedWeight) -> Tensor | None:
    """Computes ``w_q - zero_point`` as int8, (C_out, C_in, ...); None if a value is not a signed byte."""
    zero_point = weight.qparams.zero_point.to(torch.int16)
    rows = weight.w_q.flatten(1)
    least, most = rows.amin(1).to(torch.int16) - zero_point, rows.amax(1).to(torch.int16) - zero_point
    if int(least.min()) < -128 or int(most.max()) > 127:
        return None
    bytes_: Tensor = rows - weight.qparams.zero_point.to(torch.uint8)[:, None]  # modulo 256, so without a wider copy
    return bytes_.view(torch.int8).view(weight.w_q.shape)


def column_sums(signed: Tensor) -> Tensor:
    """Computes the exact sums of each output channel's weights, (C_out,) int64, without a wide copy of all weights."""
    rows = signed.flatten(1)
    at_once = max(SUMMED_AT_ONCE // max(rows.shape[1], 1), 1)
    return torch.cat([some.sum(1, dtype=torch.int64) for some in rows.split(at_once)])


def obstacle(layer: nn.Module, signed: Tensor | None) -> str | None:
    """Explains why no runtime can multiply a layer with these signed weights in integers; None if one can."""
    if signed is None:
        return "weights less their zero point are no signed bytes"
    products = signed[0].numel()
    if products > MOST_PRODUCTS:
        return f"{products} products per output may overflow int32 sums; at most {MOST_PRODUCTS} cannot"
    if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
        return f"padding mode {layer.padding_mode}; integer convolutions pad with zeros"
    return None


def needs_schedule(layer: QuantizedLayer) -> str | None:
    """Explains why a runtime that needs static ranges cannot compute a layer in integers; None if it can."""
    return "its ranges are found at run time" if isinstance(layer.activations, DynamicRanges) else None
