"""Limits of the integer kernels of all runtimes, which multiply unsigned activation bytes by signed weight bytes."""

import torch
from torch import Tensor, nn

from bitbrush.network.layers import QuantizedLayer
from bitbrush.numerics.weights import QuantizedWeight
from bitbrush.timeline.schedule import DynamicRanges

MOST_PRODUCTS = (2**31 - 1) // (255 * 128)
"""Largest number of byte products whose sum fits into int32 for any bytes."""


def signed_bytes(weight: QuantizedWeight) -> Tensor | None:
    """Computes ``w_q - zero_point`` as int8, (C_out, C_in, ...); None if a value is not a signed byte."""
    zero_point = weight.qparams.zero_point.view(-1, *(1,) * (weight.w_q.dim() - 1))
    signed = weight.w_q.to(torch.int16) - zero_point
    if int(signed.min()) < -128 or int(signed.max()) > 127:
        return None
    return signed.to(torch.int8)


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
