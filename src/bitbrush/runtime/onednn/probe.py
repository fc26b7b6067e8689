"""Probe of whether oneDNN's products are exact on this CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bitbrush.runtime.interface import RuntimeUnavailable
from bitbrush.runtime.onednn.layers import pack_linear
from bitbrush.session.offload import CPU

_CHANNELS = 64
_EXTREMES = ((255, 127), (255, -128), (1, 127))


def require_exact_products() -> None:
    """Checks that torch has oneDNN's integer operators and that their sums do not saturate.

    Without VNNI, x86 adds two products of bytes in 16 bits, where 2 * 255 * 127 does not fit. Large activations times
    large weights then come out too small, without an error. So the largest bytes are tried.

    Raises:
        RuntimeUnavailable: The operators are missing or inexact.
    """
    if not torch.backends.mkldnn.is_available():
        raise RuntimeUnavailable("this build of torch has no oneDNN")
    for x, w in _EXTREMES:
        for name, product, exact in (("linear", *_linear(x, w)), ("convolution", *_convolution(x, w))):
            if not torch.equal(product, exact):
                raise RuntimeUnavailable(
                    f"oneDNN's 8-bit {name} is not exact on this processor: {_CHANNELS} times {x} * {w} gives "
                    f"{product.reshape(-1)[0]:g} a channel; it needs AVX512-VNNI, AVX-VNNI or AMX"
                )


def _linear(x: int, w: int) -> tuple[Tensor, Tensor]:
    rows = torch.full((8, _CHANNELS), x, dtype=torch.uint8, device=CPU)
    weight = torch.full((_CHANNELS, _CHANNELS), w, dtype=torch.int8, device=CPU)
    y = torch.ops.onednn.qlinear_pointwise(
        rows, 1.0, 0, pack_linear(weight), *_ones(), None, 1.0, 0, torch.float32, "none", [], ""
    )
    return y, F.linear(rows.double(), weight.double()).float()


def _convolution(x: int, w: int) -> tuple[Tensor, Tensor]:
    pixels = torch.full((1, _CHANNELS, 6, 6), x, dtype=torch.uint8, device=CPU)
    image = pixels.contiguous(memory_format=torch.channels_last)
    weight = torch.full((_CHANNELS, _CHANNELS, 3, 3), w, dtype=torch.int8, device=CPU)
    geometry = [1, 1], [0, 0], [1, 1], 1
    scale, zero_point = _ones()
    packed = torch.ops.onednn.qconv_prepack(weight, scale, 1.0, 0, *geometry, None)
    y = torch.ops.onednn.qconv2d_pointwise(
        image, 1.0, 0, packed, scale, zero_point, None, *geometry, 1.0, 0, torch.float32, "none", [], ""
    )
    return y, F.conv2d(image.double(), weight.double()).float()


def _ones() -> tuple[Tensor, Tensor]:
    ones = torch.ones(_CHANNELS, dtype=torch.float32, device=CPU)
    return ones, torch.zeros(_CHANNELS, dtype=torch.int32, device=CPU)
