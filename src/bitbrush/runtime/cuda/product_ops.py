"""Integer products as torch operators; see :mod:`bitbrush.runtime.cuda.fused_launches`.

Imports Triton: only modules that run on a GPU (or in Triton's interpreter) may import this. Images are (N, H, W, C).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from bitbrush.runtime.cuda.fused_launches import empty_bytes
from bitbrush.runtime.cuda.product_kernel import gated_product_kernel, product_kernel
from bitbrush.runtime.cuda.tiles import Gpu, Need, Product, Tile, choose_tile

_PANEL = 8
_EMULATED = Gpu(processors=1, shared_bytes=1 << 16, products=1024)
"""Stand-in for Triton's interpreter, which runs on the CPU."""

_PRODUCTS = {(8, 0): 2048, (9, 0): 4096, (10, 0): 8192, (10, 3): 256}
_PRODUCTS_OF_OTHERS = 1024
"""Byte products of a multiprocessor per clock, by compute capability: the vendor's peaks."""


class Geometry(NamedTuple):
    """Geometry of a convolution over padded input; a linear layer is a 1x1 convolution over an image of one line."""

    out_height: int
    out_width: int
    kernel_h: int = 1
    kernel_w: int = 1
    stride_h: int = 1
    stride_w: int = 1
    dilation_h: int = 1
    dilation_w: int = 1
    groups: int = 1


@torch.library.custom_op("bitbrush::integer_product", mutates_args=())
def integer_product(
    high: Tensor,
    low: Tensor | None,
    weight: Tensor,
    w_zero: Tensor | None,
    w_sums: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    scales: Tensor,
    integers: Tensor,
    geometry: Sequence[int],
    split: bool,  # noqa: FBT001 - an operator of torch has a plain signature
    dtype: torch.dtype,
) -> Tensor:
    """Computes ``scale w_scale sum((x_q - zero_point) w) + bias + residual``.

    Args:
        high: (N, H, W, C) int8: high bytes of x_q less half their range, border included.
        low: Low bytes likewise, or None.
        weight: (C_out, taps, C / groups) int8, or uint8 nibbles.
        w_zero: (C_out,) int8 zero points of nibbles, else None.
        w_sums: (C_out,) int32 sums of the signed weights.
        w_scale: (C_out,) float32.
        bias: (C_out,) float32 or None.
        residual: Tensor of the result's shape, or None.
        scales: (4,) float32, see :class:`~bitbrush.runtime.cuda.steps.StepQParams`.
        integers: (4,) int32, likewise.
        geometry: Fields of :class:`Geometry`.
        split: Whether sums of two bytes exceed 32 bits.
        dtype: Dtype of the result.

    Returns:
        (N, out_height, out_width, C_out) of ``dtype``.
    """
    own = Geometry(*geometry)
    y = _result(high, w_scale, own, dtype)
    rows, filters = y.numel() // y.shape[-1], y.shape[-1] // own.groups
    channels = high.shape[-1] // own.groups
    product = Product(rows, filters, channels, own.kernel_h * own.kernel_w)
    need = Need.NOTHING if residual is None else Need.RESIDUAL
    tile = _tile(high, w_zero, product, need, split=split)
    programs = triton.cdiv(rows, tile.m) * triton.cdiv(filters, tile.n)
    sizes = (
        rows,
        filters,
        channels,
        weight.shape[2],
        *own[:2],
        high.shape[2],
        high.shape[1] * high.shape[2],
        high.shape[3],
        *own[4:8],
    )
    product_kernel[(programs, own.groups)](
        *(high, low, weight, w_zero, w_sums, w_scale, bias, residual, y, scales, integers),
        *sizes,
        TAPS=own.kernel_h * own.kernel_w,
        KERNEL_WIDTH=own.kernel_w,
        RESIDUAL=residual is not None,
        **_constants(tile, channels, low, w_zero, bias, split=split),
    )
    return y


@integer_product.register_fake
def _(
    high: Tensor,
    low: Tensor | None,
    weight: Tensor,
    w_zero: Tensor | None,
    w_sums: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    scales: Tensor,
    integers: Tensor,
    geometry: Sequence[int],
    split: bool,  # noqa: FBT001 - as above
    dtype: torch.dtype,
) -> Tensor:
    return _result(high, w_scale, Geometry(*geometry), dtype)


def _result(high: Tensor, w_scale: Tensor, geometry: Geometry, dtype: torch.dtype) -> Tensor:
    return high.new_empty(high.shape[0], geometry.out_height, geometry.out_width, w_scale.shape[0], dtype=dtype)


@torch.library.custom_op("bitbrush::gated_product", mutates_args=())
def gated_product(
    high: Tensor,
    low: Tensor | None,
    weight: Tensor,
    w_zero: Tensor | None,
    w_sums: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    scales: Tensor,
    integers: Tensor,
    next_scales: Tensor,
    next_integers: Tensor,
    split: bool,  # noqa: FBT001 - as above
    next_wide: bool,  # noqa: FBT001
) -> tuple[Tensor, Tensor]:
    """Computes the bytes of ``quantize(value * gelu(gate))``, for the halves of a linear layer's output.

    Quantization uses the next layer's parameters. The product equals :func:`integer_product` for rows ``high``, ``low``
    (..., C), whose output is not rounded before.
    """
    filters = w_scale.shape[0]
    next_high, next_low = _gated(high, w_scale, next_wide=next_wide)
    channels = high.shape[-1]
    rows = high.numel() // channels
    tile = _tile(high, w_zero, Product(rows, filters, channels), Need.GATE, split=split)
    gated_product_kernel[(triton.cdiv(rows, tile.m) * triton.cdiv(filters, tile.n),)](
        *(high, low, weight, w_zero, w_sums, w_scale, bias, next_high, next_low),
        *(scales, integers, next_scales, next_integers, rows, filters, channels, weight.shape[2]),
        NEXT_LOW=next_wide,
        **_constants(tile, channels, low, w_zero, bias, split=split),
    )
    return next_high, next_low


@gated_product.register_fake
def _(
    high: Tensor,
    low: Tensor | None,
    weight: Tensor,
    w_zero: Tensor | None,
    w_sums: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    scales: Tensor,
    integers: Tensor,
    next_scales: Tensor,
    next_integers: Tensor,
    split: bool,  # noqa: FBT001 - as above
    next_wide: bool,  # noqa: FBT001
) -> tuple[Tensor, Tensor]:
    return _gated(high, w_scale, next_wide=next_wide)


def _gated(high: Tensor, w_scale: Tensor, *, next_wide: bool) -> tuple[Tensor, Tensor]:
    return empty_bytes(high, (*high.shape[:-1], w_scale.shape[0] // 2), wide=next_wide)


def _tile(high: Tensor, w_zero: Tensor | None, product: Product, otherwise: Need, *, split: bool) -> Tile:
    if w_zero is not None:
        product = replace(product, weights=2)
    need = Need.TWO_SUMS if split else Need.UNPACKING if w_zero is not None else otherwise
    return choose_tile(product, gpu_of(high.device), need)


def _constants(
    tile: Tile, channels: int, low: Tensor | None, w_zero: Tensor | None, bias: Tensor | None, *, split: bool
) -> dict[str, Any]:
    """Collects the compile-time constants of both kernels."""
    packed = w_zero is not None
    return {
        "EVEN": channels % (2 * tile.k if packed else tile.k) == 0,
        "PACKED": packed,
        "LOW": low is not None,
        "SPLIT": split,
        "BIAS": bias is not None,
        "BLOCK_M": tile.m,
        "BLOCK_N": tile.n,
        "BLOCK_K": tile.k,
        "PANEL": _PANEL,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


@lru_cache
def gpu_of(device: torch.device) -> Gpu:
    """Describes the GPU of a device for the choice of tiles."""
    if device.type != "cuda":
        return _EMULATED
    found: Any = torch.cuda.get_device_properties(device)
    products = _PRODUCTS.get((found.major, found.minor), _PRODUCTS_OF_OTHERS)
    return Gpu(found.multi_processor_count, found.shared_memory_per_block_optin, products)
