"""What the integer kernels of all executors can multiply: unsigned activation bytes by signed weight bytes."""

import torch
from torch import Tensor, nn

from bitbrush.network.layers import QuantizedLayer
from bitbrush.numerics.weights import QuantizedWeight
from bitbrush.timeline.schedule import DynamicRanges

MOST_PRODUCTS = (2**31 - 1) // (255 * 128)
"""So many products of bytes fit into an int32 sum whatever the bytes are."""


def signed_bytes(weight: QuantizedWeight) -> Tensor | None:
    """``w_q - zero_point`` as int8, (C_out, C_in, ...); None where that is no signed byte."""
    zero_point = weight.qparams.zero_point.view(-1, *(1,) * (weight.w_q.dim() - 1))
    signed = weight.w_q.to(torch.int16) - zero_point
    if int(signed.min()) < -128 or int(signed.max()) > 127:
        return None
    return signed.to(torch.int8)


def obstacle(layer: nn.Module, signed: Tensor | None) -> str | None:
    """Why no executor can multiply a layer of these weights, signed, in integers; None if it can."""
    if signed is None:
        return "weights less their zero point are no signed bytes"
    products = signed[0].numel()
    if products > MOST_PRODUCTS:
        return f"{products} products per output may overflow int32 sums; at most {MOST_PRODUCTS} cannot"
    if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
        return f"padding mode {layer.padding_mode}; integer convolutions pad with zeros"
    return None


def needs_schedule(layer: QuantizedLayer) -> str | None:
    """Why an executor that must know ranges beforehand cannot compute a layer in integers; None if it can."""
    return "its ranges are found at run time" if isinstance(layer.activations, DynamicRanges) else None
