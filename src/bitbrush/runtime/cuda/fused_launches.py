"""Fused ops between products as torch operators, which torch.compile does not trace and CUDA graphs record.

Imports Triton: only modules that run on a GPU (or in Triton's interpreter) may import this. Images are (N, H, W, C).
"""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from bitbrush.runtime.cuda import fused_kernels

_MOST_CHUNKS = 256


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
    """Computes the bytes of ``quantize(f(x))``, with a border of zero points.

    f is ``factor x + shift`` if they are present, then SiLU if ``silu``. Each pixel is repeated ``magnify`` times in
    both directions.

    Args:
        x: (N, H, W, C).
        factor: (N, C) float32 or None.
        shift: (N, C) float32 or None.
        scales: (4,) float32, see :class:`~bitbrush.runtime.cuda.steps.StepQParams`.
        integers: (4,) int32, likewise.
        border: Pixels of zero points above and below, and left and right.
        magnify: Repetitions of each pixel.
        silu: Whether to apply SiLU.
        wide: Whether some steps have two bytes.

    Returns:
        High and low bytes, int8, each less half its range; the low bytes are empty unless ``wide``.
    """
    high, low = _bordered(x, border, magnify, wide=wide)
    pixels, channels = high.numel() // high.shape[-1], x.shape[-1]
    block_c = min(64, triton.next_power_of_2(channels))
    block_p = 4096 // block_c
    fused_kernels.quantize_kernel[(triton.cdiv(pixels, block_p), triton.cdiv(channels, block_c))](
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
    return empty_bytes(x, shape, wide=wide)


def empty_bytes(x: Tensor, shape: Sequence[int], *, wide: bool) -> tuple[Tensor, Tensor]:
    """Allocates high and low bytes of a shape, int8; the low bytes are empty unless ``wide``."""
    return x.new_empty(shape, dtype=torch.int8), x.new_empty(shape if wide else 0, dtype=torch.int8)


@torch.library.custom_op("bitbrush::group_norm_affine", mutates_args=())
def group_norm_affine(
    x: Tensor, gamma: Tensor, beta: Tensor, added: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Computes factor and shift, (N, C) float32 each, so that ``factor x + shift`` is the group norm of ``x + added``.

    ``added`` is (N, C) float32 with contiguous channels.
    """
    images, channels = x.shape[0], x.shape[-1]
    pixels = x.shape[1] * x.shape[2]
    chunk = max(64, triton.next_power_of_2(triton.cdiv(pixels, _MOST_CHUNKS)))
    chunks = triton.cdiv(pixels, chunk)
    means, squares = (x.new_empty(images, chunks, channels, dtype=torch.float32) for _ in range(2))
    block_c = min(64, triton.next_power_of_2(channels))
    fused_kernels.moments_kernel[(images, chunks, triton.cdiv(channels, block_c))](
        x, means, squares, pixels, channels, chunk, BLOCK_P=64, BLOCK_C=block_c
    )
    factor, shift = (x.new_empty(images, channels, dtype=torch.float32) for _ in range(2))
    fused_kernels.affine_kernel[(images, groups)](
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
        0 if added is None else added.stride(0),
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
    """Computes the bytes of ``quantize(layer_norm(x))``, over the last dimension."""
    high, low = empty_bytes(x, x.shape, wide=wide)
    channels = x.shape[-1]
    rows = x.numel() // channels
    block_c = triton.next_power_of_2(channels)
    block_r = max(1, 4096 // block_c)
    fused_kernels.layer_norm_kernel[(triton.cdiv(rows, block_r),)](
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
    return empty_bytes(x, x.shape, wide=wide)


@torch.library.custom_op("bitbrush::geglu_bytes", mutates_args=())
def geglu_bytes(
    x: Tensor,
    scales: Tensor,
    integers: Tensor,
    wide: bool,  # noqa: FBT001 - an operator of torch has a plain signature
) -> tuple[Tensor, Tensor]:
    """Computes the bytes of ``quantize(value * gelu(gate))``, for the halves of the last dimension."""
    high, low = _halves(x, wide=wide)
    channels = x.shape[-1] // 2
    rows = x.numel() // (2 * channels)
    block_c = min(128, triton.next_power_of_2(channels))
    block_r = 4096 // block_c
    fused_kernels.geglu_kernel[(triton.cdiv(rows, block_r), triton.cdiv(channels, block_c))](
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
    return empty_bytes(x, (*x.shape[:-1], x.shape[-1] // 2), wide=wide)
