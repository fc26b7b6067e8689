"""The kernels as torch operators: what torch.compile takes as they are, and CUDA graphs record.

Imports Triton: only what runs on a card (or in Triton's interpreter) may import this. Images are (N, H, W, C).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from bitbrush.runtime.cuda import glue_kernels
from bitbrush.runtime.cuda.product_kernel import product_kernel
from bitbrush.runtime.cuda.tiles import Card, Need, choose_tile

_PANEL = 8
_MOST_CHUNKS = 256
_EMULATED = Card(processors=1, shared_bytes=1 << 16)
"""Of Triton's interpreter, which runs on the processor."""


class Geometry(NamedTuple):
    """Of a convolution whose input has its border. A linear layer is one of 1x1 over an image of one line."""

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
    """``scale w_scale sum((x_q - zero_point) w) + bias + residual``, (N, out_height, out_width, C_out) of ``dtype``.

    ``high``, ``low`` (N, H, W, C) int8: the bytes of x_q less 128; ``weight`` (C_out, taps, C / groups) int8, or of
    nibbles uint8 with the zero points ``w_zero``. ``split``: sums of two bytes don't fit into 32 bits.
    """
    own = Geometry(*geometry)
    y = _result(high, w_scale, own, dtype)
    rows, filters = y.numel() // y.shape[-1], y.shape[-1] // own.groups
    channels = high.shape[-1] // own.groups
    packed = w_zero is not None
    need = (
        Need.TWO_SUMS
        if split
        else Need.UNPACKING
        if packed
        else Need.RESIDUAL
        if residual is not None
        else Need.NOTHING
    )
    tile = choose_tile(rows, filters, (channels + 1) // 2 if packed else channels, _card(high.device), need)
    programs = triton.cdiv(rows, tile.m) * triton.cdiv(filters, tile.n)
    sizes = rows, filters, channels, *own[:2], high.shape[2], high.shape[1] * high.shape[2], high.shape[3], *own[4:8]
    product_kernel[(programs, own.groups)](
        *(high, low, weight, w_zero, w_sums, w_scale, bias, residual, y, scales, integers),
        *sizes,
        TAPS=own.kernel_h * own.kernel_w,
        KERNEL_WIDTH=own.kernel_w,
        EVEN=channels % (2 * tile.k if packed else tile.k) == 0,
        PACKED=packed,
        LOW=low is not None,
        SPLIT=split,
        BIAS=bias is not None,
        RESIDUAL=residual is not None,
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        BLOCK_K=tile.k,
        PANEL=_PANEL,
        num_warps=tile.warps,
        num_stages=tile.stages,
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


@torch.library.custom_op("bitbrush::quantize_image", mutates_args=())
def quantize_image(
    x: Tensor,
    factor: Tensor | None,
    shift: Tensor | None,
    scales: Tensor,
    integers: Tensor,
    border: Sequence[int],
    magnify: int,
    silu: bool,  # noqa: FBT001 - an operator of torch has a plain signature
    wide: bool,  # noqa: FBT001
) -> tuple[Tensor, Tensor]:
    """Bytes of ``quantize(f(x))`` less 128, with ``border`` pixels of zero points above and below, left and right.

    f: ``factor x + shift`` (N, C) where given, then SiLU where asked for, each pixel repeated ``magnify`` times in both
    directions. The low bytes are empty unless ``wide``.
    """
    high, low = _bordered(x, border, magnify, wide=wide)
    pixels, channels = high.numel() // high.shape[-1], x.shape[-1]
    block_c = min(64, triton.next_power_of_2(channels))
    block_p = 4096 // block_c
    glue_kernels.quantize_kernel[(triton.cdiv(pixels, block_p), triton.cdiv(channels, block_c))](
        x,
        high,
        low,
        factor,
        shift,
        scales,
        integers,
        pixels,
        channels,
        x.shape[1],
        x.shape[2],
        border[0],
        border[1],
        MAGNIFY=magnify,
        AFFINE=factor is not None,
        SILU=silu,
        LOW=wide,
        BLOCK_P=block_p,
        BLOCK_C=block_c,
    )
    return high, low


@quantize_image.register_fake
def _(
    x: Tensor,
    factor: Tensor | None,
    shift: Tensor | None,
    scales: Tensor,
    integers: Tensor,
    border: Sequence[int],
    magnify: int,
    silu: bool,  # noqa: FBT001 - as above
    wide: bool,  # noqa: FBT001
) -> tuple[Tensor, Tensor]:
    return _bordered(x, border, magnify, wide=wide)


def _bordered(x: Tensor, border: Sequence[int], magnify: int, *, wide: bool) -> tuple[Tensor, Tensor]:
    images, height, width, channels = x.shape
    shape = images, height * magnify + 2 * border[0], width * magnify + 2 * border[1], channels
    return _bytes(x, shape, wide=wide)


def _bytes(x: Tensor, shape: Sequence[int], *, wide: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(shape, dtype=torch.int8), x.new_empty(shape if wide else 0, dtype=torch.int8)


@torch.library.custom_op("bitbrush::group_norm_affine", mutates_args=())
def group_norm_affine(
    x: Tensor, gamma: Tensor, beta: Tensor, added: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Factor and shift, (N, C) float32 each, with which ``factor x + shift`` is the group norm of ``x + added``."""
    images, channels = x.shape[0], x.shape[-1]
    pixels = x.shape[1] * x.shape[2]
    chunk = max(64, triton.next_power_of_2(triton.cdiv(pixels, _MOST_CHUNKS)))
    chunks = triton.cdiv(pixels, chunk)
    means, squares = (x.new_empty(images, chunks, channels, dtype=torch.float32) for _ in range(2))
    block_c = min(64, triton.next_power_of_2(channels))
    glue_kernels.moments_kernel[(images, chunks, triton.cdiv(channels, block_c))](
        x, means, squares, pixels, channels, chunk, BLOCK_P=64, BLOCK_C=block_c
    )
    factor, shift = (x.new_empty(images, channels, dtype=torch.float32) for _ in range(2))
    glue_kernels.affine_kernel[(images, groups)](
        means,
        squares,
        added,
        gamma,
        beta,
        factor,
        shift,
        pixels,
        channels,
        chunk,
        chunks,
        channels // groups,
        eps,
        ADDED=added is not None,
        BLOCK_T=triton.next_power_of_2(chunks),
        BLOCK_C=triton.next_power_of_2(channels // groups),
    )
    return factor, shift


@group_norm_affine.register_fake
def _(x: Tensor, gamma: Tensor, beta: Tensor, added: Tensor | None, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    shape = x.shape[0], x.shape[-1]
    return x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("bitbrush::layer_norm_bytes", mutates_args=())
def layer_norm_bytes(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    scales: Tensor,
    integers: Tensor,
    wide: bool,  # noqa: FBT001 - an operator of torch has a plain signature
) -> tuple[Tensor, Tensor]:
    """Bytes of ``quantize(layer_norm(x))`` less 128, over the last dimension."""
    high, low = _bytes(x, x.shape, wide=wide)
    channels = x.shape[-1]
    rows = x.numel() // channels
    block_c = triton.next_power_of_2(channels)
    block_r = max(1, 4096 // block_c)
    glue_kernels.layer_norm_kernel[(triton.cdiv(rows, block_r),)](
        x,
        high,
        low,
        gamma,
        beta,
        scales,
        integers,
        rows,
        channels,
        eps,
        LOW=wide,
        BLOCK_R=block_r,
        BLOCK_C=block_c,
    )
    return high, low


@layer_norm_bytes.register_fake
def _(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    scales: Tensor,
    integers: Tensor,
    wide: bool,  # noqa: FBT001 - as above
) -> tuple[Tensor, Tensor]:
    return _bytes(x, x.shape, wide=wide)


@torch.library.custom_op("bitbrush::geglu_bytes", mutates_args=())
def geglu_bytes(
    x: Tensor,
    scales: Tensor,
    integers: Tensor,
    wide: bool,  # noqa: FBT001 - an operator of torch has a plain signature
) -> tuple[Tensor, Tensor]:
    """Bytes of ``quantize(value * gelu(gate))`` less 128, of the halves of the last dimension."""
    high, low = _halves(x, wide=wide)
    channels = x.shape[-1] // 2
    rows = x.numel() // (2 * channels)
    block_c = min(128, triton.next_power_of_2(channels))
    block_r = 4096 // block_c
    glue_kernels.geglu_kernel[(triton.cdiv(rows, block_r), triton.cdiv(channels, block_c))](
        x, high, low, scales, integers, rows, channels, LOW=wide, BLOCK_R=block_r, BLOCK_C=block_c
    )
    return high, low


@geglu_bytes.register_fake
def _(
    x: Tensor,
    scales: Tensor,
    integers: Tensor,
    wide: bool,  # noqa: FBT001 - as above
) -> tuple[Tensor, Tensor]:
    return _halves(x, wide=wide)


def _halves(x: Tensor, *, wide: bool) -> tuple[Tensor, Tensor]:
    return _bytes(x, (*x.shape[:-1], x.shape[-1] // 2), wide=wide)


@lru_cache
def _card(device: torch.device) -> Card:
    if device.type != "cuda":
        return _EMULATED
    found: Any = torch.cuda.get_device_properties(device)
    return Card(found.multi_processor_count, found.shared_memory_per_block_optin)
