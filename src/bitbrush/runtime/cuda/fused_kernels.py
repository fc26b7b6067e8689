"""Triton kernels of fused ops between two products: normalization, activation and quantization, one pass each.

Imports Triton: only modules that run on a GPU (or in Triton's interpreter) may import this.
"""

import triton
import triton.language as tl


@triton.jit
def store_bytes(value, high, low, where, mask, scales, integers, LOW: tl.constexpr):
    """Stores ``clamp(round(value / scale) + zero_point, 0, qmax)`` as one byte, or as high and low byte.

    Each stored byte is less half its range: 128, or 2 for the high byte of 10 bits. So it fits into int8, and sums of
    high bytes stay small.

    Rounding half to even adds 1.5 * 2^23: the last bits of the sum are the integer, and reading them is free. A GPU
    converts floats to integers as slowly as it computes exponentials. The clamp between the product and the sum keeps
    the compiler from fusing the two, which would round once where the definition rounds twice. NaN is stored as zero.
    """
    zero_point, qmax = tl.load(integers), tl.load(integers + 1)
    scaled = value * tl.load(scales + 1)
    scaled = tl.where(scaled == scaled, scaled, 0.0)
    scaled = tl.minimum(tl.maximum(scaled, (-zero_point).to(tl.float32)), (qmax - zero_point).to(tl.float32))
    x_q = (scaled + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000 + zero_point
    if LOW:
        two = tl.load(integers + 2)
        tl.store(high + where, ((x_q >> (8 * two)) - ((qmax + 1) >> (8 * two + 1))).to(tl.int8), mask=mask)
        tl.store(low + where, ((x_q & 255) - 128).to(tl.int8), mask=mask & (two > 0))
    else:
        tl.store(high + where, (x_q - ((qmax + 1) >> 1)).to(tl.int8), mask=mask)


@triton.jit
def gelu(x):
    """Computes the exact GELU, ``x Phi(x)``."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit(do_not_specialize=["pixels", "height", "width", "border_h", "border_w"])
def quantize_kernel(
    x,
    high,
    low,
    factor,
    shift,
    scales,
    integers,
    pixels,
    channels,
    height,
    width,
    border_h,
    border_w,
    MAGNIFY: tl.constexpr,
    AFFINE: tl.constexpr,
    SILU: tl.constexpr,
    LOW: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Computes ``quantize(f(x))`` with a border of zero points.

    f is ``factor x + shift`` if AFFINE, then SiLU if SILU. x is (images, height, width, channels); high and low are
    (images, height MAGNIFY + 2 border_h, ...) with ``pixels`` pixels in all.
    """
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    out_width = width * MAGNIFY + 2 * border_w
    out_pixels = (height * MAGNIFY + 2 * border_h) * out_width
    image, place = p // out_pixels, p % out_pixels
    i, j = place // out_width - border_h, place % out_width - border_w
    inside = (i >= 0) & (i < height * MAGNIFY) & (j >= 0) & (j < width * MAGNIFY) & (p < pixels)
    source = (image * height + i // MAGNIFY) * width + j // MAGNIFY
    mask = inside[:, None] & (c < channels)[None, :]
    value = tl.load(x + source[:, None].to(tl.int64) * channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
    if AFFINE:
        own = image[:, None] * channels + c[None, :]
        value = value * tl.load(factor + own, mask=mask, other=0.0) + tl.load(shift + own, mask=mask, other=0.0)
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    where = p[:, None].to(tl.int64) * channels + c[None, :]
    stored = (p < pixels)[:, None] & (c < channels)[None, :]
    store_bytes(tl.where(mask, value, 0.0), high, low, where, stored, scales, integers, LOW)


@triton.jit(do_not_specialize=["pixels", "chunk"])
def moments_kernel(x, means, squares, pixels, channels, chunk, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Computes the mean of each channel over ``chunk`` pixels of an image, and the sum of squares around it.

    x is (images, pixels, channels); means and squares are (images, chunks, channels) float32. Blocks are merged by
    Chan's method, so that a mean far from zero loses no precision.
    """
    image, part = tl.program_id(0), tl.program_id(1)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    mean = tl.zeros((BLOCK_C,), dtype=tl.float32)
    square = tl.zeros((BLOCK_C,), dtype=tl.float32)
    count = 0.0
    for first in range(part * chunk, min((part + 1) * chunk, pixels), BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        valid = (p < min((part + 1) * chunk, pixels))[:, None]
        at = (image.to(tl.int64) * pixels + p[:, None]) * channels + c[None, :]
        value = tl.load(x + at, mask=valid & (c < channels)[None, :], other=0.0).to(tl.float32)
        more = tl.minimum(min((part + 1) * chunk, pixels) - first, BLOCK_P).to(tl.float32)
        own = tl.sum(value, axis=0) / more
        away = tl.where(valid, value - own[None, :], 0.0)
        both = count + more
        apart = own - mean
        mean += apart * (more / both)
        square += tl.sum(away * away, axis=0) + apart * apart * (count * more / both)
        count = both
    where = (image * tl.num_programs(1) + part) * channels + c
    tl.store(means + where, mean, mask=c < channels)
    tl.store(squares + where, square, mask=c < channels)


@triton.jit(do_not_specialize=["pixels", "chunk", "chunks", "added_stride"])
def affine_kernel(
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
    of_group,
    eps,
    added_stride,
    ADDED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Computes group normalization as ``factor x + shift``, (images, channels) each, from the moments of the chunks.

    ``added`` (images, channels), with row stride ``added_stride``, is added to x before the normalization.
    """
    image, group = tl.program_id(0), tl.program_id(1)
    t, inner = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_C)
    c = group * of_group + inner
    valid = (t < chunks)[:, None] & (inner < of_group)[None, :]
    count = tl.minimum(pixels - t * chunk, chunk).to(tl.float32)[:, None]
    at = (image * chunks + t[:, None]) * channels + c[None, :]
    mean = tl.load(means + at, mask=valid, other=0.0)
    more = tl.zeros((BLOCK_C,), dtype=tl.float32)
    if ADDED:
        more = tl.load(added + image * added_stride + c, mask=inner < of_group, other=0.0)
    mean += more[None, :]
    total = (pixels * of_group).to(tl.float32)
    center = tl.sum(tl.sum(tl.where(valid, mean * count, 0.0), axis=0), axis=0) / total
    away = tl.where(valid, (mean - center) * (mean - center) * count, 0.0)
    away += tl.load(squares + at, mask=valid, other=0.0)
    variance = tl.sum(tl.sum(away, axis=0), axis=0) / total
    own = tl.load(gamma + c, mask=inner < of_group, other=0.0) / tl.sqrt(variance + eps)
    moved = tl.load(beta + c, mask=inner < of_group, other=0.0) + (more - center) * own
    where = image * channels + c
    tl.store(factor + where, own, mask=inner < of_group)
    tl.store(shift + where, moved, mask=inner < of_group)


@triton.jit(do_not_specialize=["rows"])
def layer_norm_kernel(
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
    LOW: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Computes ``quantize(layer_norm(x))`` for rows (rows, channels)."""
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.arange(0, BLOCK_C)
    mask = (r < rows)[:, None] & (c < channels)[None, :]
    where = r[:, None].to(tl.int64) * channels + c[None, :]
    value = tl.load(x + where, mask=mask, other=0.0).to(tl.float32)
    away = tl.where(mask, value - (tl.sum(value, axis=1) / channels)[:, None], 0.0)
    variance = tl.sum(away * away, axis=1) / channels
    own = away / tl.sqrt(variance + eps)[:, None]
    own = own * tl.load(gamma + c, mask=c < channels, other=0.0)[None, :]
    own += tl.load(beta + c, mask=c < channels, other=0.0)[None, :]
    store_bytes(own, high, low, where, mask, scales, integers, LOW)


@triton.jit(do_not_specialize=["rows"])
def geglu_kernel(
    x, high, low, scales, integers, rows, channels, LOW: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Computes ``quantize(value * gelu(gate))``, where value and gate are the halves of rows (rows, 2 channels)."""
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (r < rows)[:, None] & (c < channels)[None, :]
    source = r[:, None].to(tl.int64) * (2 * channels) + c[None, :]
    value = tl.load(x + source, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(x + source + channels, mask=mask, other=0.0).to(tl.float32)
    value *= gelu(gate)
    where = r[:, None].to(tl.int64) * channels + c[None, :]
    store_bytes(value, high, low, where, mask, scales, integers, LOW)
