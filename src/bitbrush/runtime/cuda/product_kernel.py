"""Integer product kernels: an exact implicit matrix product of bytes with its epilogue in one pass.

Imports Triton: only modules that run on a GPU (or in Triton's interpreter) may import this.
"""

import triton
import triton.language as tl

from bitbrush.runtime.cuda.fused_kernels import gelu, store_bytes

NARROW = tl.constexpr(128)
"""Largest number of pixels or filters stored at a time."""


# fmt: off
@triton.jit(
    do_not_specialize=["rows", "out_height", "out_width", "in_width", "in_pixels",
                       "stride_h", "stride_w", "dilation_h", "dilation_w"]
)
def product_kernel(
    x_high, x_low, weight, w_zero, w_sums, w_scale, bias, residual, y, scales, integers,
    rows, filters, channels, columns, out_height, out_width, in_width, in_pixels, in_channels,
    stride_h, stride_w, dilation_h, dilation_w,
    TAPS: tl.constexpr, KERNEL_WIDTH: tl.constexpr,
    EVEN: tl.constexpr, PACKED: tl.constexpr, LOW: tl.constexpr, SPLIT: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PANEL: tl.constexpr,
):
    """Computes ``y = scale w_scale sum((x_q - zero_point) w) + bias + residual`` for a tile of pixels times filters.

    x is (images, in_pixels, in_channels) with its border, NHWC. weight is (groups filters, TAPS, columns) of bytes. y
    is (rows, groups filters), a row per pixel. The second axis of the launch grid is the group. ``scales`` and
    ``integers`` hold the step's scale and zero point, and whether activations have two bytes. The kernel reads them, so
    that one launch serves every step.

    EVEN: blocks of columns need no mask. PACKED: weights are nibbles. LOW: steps may have two bytes. SPLIT: the sums of
    two bytes do not fit into 32 bits.
    """
    first, n0 = _place(rows, filters, BLOCK_M, BLOCK_N, PANEL)
    n = n0 + tl.arange(0, BLOCK_N)
    m, group = first + tl.arange(0, BLOCK_M), tl.program_id(1)
    pixel = m % rows  # rows beyond the end repeat the first ones and are not stored: one row would be a hot cache line
    image, place = pixel // (out_height * out_width), pixel % (out_height * out_width)
    corner = (place // out_width) * stride_h * in_width + (place % out_width) * stride_w
    start = (image.to(tl.int64) * in_pixels + corner) * in_channels + group * channels
    own = group * filters + n % filters
    out = _outputs(x_high, x_low, weight, w_zero, w_sums, w_scale, bias, scales, integers, start, own,
                   channels, columns, dilation_h * in_width * in_channels, dilation_w * in_channels,
                   TAPS, KERNEL_WIDTH, EVEN, PACKED, LOW, SPLIT, BIAS, BLOCK_M, BLOCK_N, BLOCK_K)
    if BLOCK_N > NARROW:
        left, right = _left_and_right(out, BLOCK_M, BLOCK_N)
        _store(left, residual, y, first, rows, filters, group, n0, RESIDUAL, BLOCK_M, BLOCK_N // 2)
        _store(right, residual, y, first, rows, filters, group, n0 + BLOCK_N // 2, RESIDUAL, BLOCK_M, BLOCK_N // 2)
    elif BLOCK_M > NARROW:
        upper, lower = _upper_and_lower(out, BLOCK_M, BLOCK_N)
        _store(upper, residual, y, first, rows, filters, group, n0, RESIDUAL, BLOCK_M // 2, BLOCK_N)
        _store(lower, residual, y, first + BLOCK_M // 2, rows, filters, group, n0, RESIDUAL, BLOCK_M // 2, BLOCK_N)
    else:
        _store(out, residual, y, first, rows, filters, group, n0, RESIDUAL, BLOCK_M, BLOCK_N)


@triton.jit(do_not_specialize=["rows"])
def gated_product_kernel(
    x_high, x_low, weight, w_zero, w_sums, w_scale, bias, high, low, scales, integers, next_scales, next_integers,
    rows, filters, channels, columns,
    EVEN: tl.constexpr, PACKED: tl.constexpr, LOW: tl.constexpr, SPLIT: tl.constexpr,
    BIAS: tl.constexpr, NEXT_LOW: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PANEL: tl.constexpr,
):
    """Computes the bytes of ``value gelu(gate)`` by the next layer's qparams, for the halves of a linear output.

    Equals :func:`product_kernel` for rows (rows, channels); high and low are (rows, filters / 2). A tile has each value
    next to its gate, so that both are in registers of one thread. The output, four times as wide as other tensors, is
    never stored.
    """
    first, n0 = _place(rows, filters, BLOCK_M, BLOCK_N, PANEL)
    m, n = first + tl.arange(0, BLOCK_M), n0 + tl.arange(0, BLOCK_N)
    start = (m % rows).to(tl.int64) * channels
    half, column = filters // 2, n % filters
    own = column // 2 + (column % 2) * half
    out = _outputs(x_high, x_low, weight, w_zero, w_sums, w_scale, bias, scales, integers, start, own,
                   channels, columns, 0, 0, 1, 1, EVEN, PACKED, LOW, SPLIT, BIAS, BLOCK_M, BLOCK_N, BLOCK_K)
    value, gate = tl.split(tl.reshape(out, (BLOCK_M, BLOCK_N // 2, 2)))
    i, j = tl.arange(0, BLOCK_M), n0 // 2 + tl.arange(0, BLOCK_N // 2)
    begin = first.to(tl.int64) * half
    stored = (m < rows)[:, None] & (j < half)[None, :]
    store_bytes(value * gelu(gate), high + begin, low + begin, i[:, None] * half + j[None, :], stored,
                next_scales, next_integers, NEXT_LOW)


# Large tiles are stored in two halves, which takes half as many registers for addresses and residuals.
@triton.jit
def _upper_and_lower(x, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    return tl.split(tl.permute(tl.reshape(x, (2, BLOCK_M // 2, BLOCK_N)), (1, 2, 0)))


@triton.jit
def _left_and_right(x, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    return tl.split(tl.permute(tl.reshape(x, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))


@triton.jit
def _store(out, residual, y, first, rows, filters, group, n0, RESIDUAL: tl.constexpr,
           BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    m, n = tl.arange(0, BLOCK_M), n0 + tl.arange(0, BLOCK_N)
    width = filters * tl.num_programs(1)
    begin = first.to(tl.int64) * width + group * filters  # offsets from it fit into 32 bits: fewer registers
    where = m[:, None] * width + n[None, :]
    stored = (first + m < rows)[:, None] & (n < filters)[None, :]
    if RESIDUAL:
        out += tl.load(residual + begin + where, mask=stored, other=0.0).to(tl.float32)
    tl.store(y + begin + where, out.to(y.dtype.element_ty), mask=stored)


@triton.jit
def _outputs(
    x_high, x_low, weight, w_zero, w_sums, w_scale, bias, scales, integers, start, own,
    channels, columns, below, beside,
    TAPS: tl.constexpr, KERNEL_WIDTH: tl.constexpr,
    EVEN: tl.constexpr, PACKED: tl.constexpr, LOW: tl.constexpr, SPLIT: tl.constexpr, BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """Computes outputs with bias, float32 (BLOCK_M, BLOCK_N), for pixels at ``start`` and the filters ``own``."""
    k = tl.arange(0, BLOCK_K)
    blocks = tl.cdiv(columns, BLOCK_K)
    filter_rows = weight + own.to(tl.int64) * (TAPS * columns)
    if PACKED:  # filters times pixels: the matrix units take the left factor from registers, where it is unpacked
        zero, w_rows, x_places = tl.load(w_zero + own), filter_rows[:, None] + k[None, :], start[None, :] + k[:, None]
        nothing = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.int32)
    else:
        zero, w_rows, x_places = own, filter_rows[None, :] + k[:, None], start[:, None] + k[None, :]
        nothing = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    total = _accumulate(nothing, x_high + x_places, w_rows, zero, TAPS * blocks, blocks,
                        channels, columns, below, beside, TAPS, KERNEL_WIDTH, EVEN, PACKED, BLOCK_K)
    offset, sums = tl.load(integers + 3), tl.load(w_sums + own)
    if LOW:
        two = tl.load(integers + 2)
        radix = 1 + 255 * two
        low = _accumulate(nothing if SPLIT else total * radix, x_low + x_places, w_rows, zero, two * TAPS * blocks,
                          blocks, channels, columns, below, beside, TAPS, KERNEL_WIDTH, EVEN, PACKED, BLOCK_K)
        total = total.to(tl.int64) * radix + low.to(tl.int64) if SPLIT else low
    if PACKED:
        total = tl.trans(total)
    if SPLIT:
        total -= (offset.to(tl.int64) * sums.to(tl.int64))[None, :]
    else:
        total -= (offset * sums)[None, :]
    out = total.to(tl.float32) * (tl.load(scales) * tl.load(w_scale + own))[None, :]
    if BIAS:
        out += tl.load(bias + own)[None, :]
    return out


@triton.jit
def _place(rows, filters, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PANEL: tl.constexpr):
    """Returns the first row and filter of this program's tile; PANEL rows of tiles share cached weights."""
    tiles_m, tiles_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(filters, BLOCK_N)
    tile = tl.program_id(0)
    panel, within = tile // (PANEL * tiles_n), tile % (PANEL * tiles_n)
    height = tl.minimum(tiles_m - panel * PANEL, PANEL)
    return (panel * PANEL + within % height) * BLOCK_M, (within // height) * BLOCK_N


@triton.jit
def _accumulate(
    total, x_rows, w_rows, zero, trips, blocks, channels, columns, below, beside,
    TAPS: tl.constexpr, KERNEL_WIDTH: tl.constexpr, EVEN: tl.constexpr, PACKED: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """Computes ``total + sum(x w)`` over ``trips`` blocks of channels, tap by tap; an absent byte has 0 trips.

    No sum may leave int32: some GPUs wrap it, others saturate (``mma.sync`` with ``satfinite``).
    """
    k = tl.arange(0, BLOCK_K)
    for trip in range(trips):
        tap = trip // blocks if TAPS > 1 else 0
        c = (trip - tap * blocks) * BLOCK_K
        x_tap = x_rows + (tap // KERNEL_WIDTH) * below + (tap % KERNEL_WIDTH) * beside + c
        w_tap = w_rows + tap * columns + c
        inside = c + k < columns
        if PACKED:
            # The low nibbles hold the first half of a tap's channels, the high nibbles the second.
            if EVEN:
                x, x_second, w = tl.load(x_tap), tl.load(x_tap + columns), tl.load(w_tap)
            else:
                x = tl.load(x_tap, mask=inside[:, None], other=0)
                x_second = tl.load(x_tap + columns, mask=(columns + c + k < channels)[:, None], other=0)
                w = tl.load(w_tap, mask=inside[None, :], other=0)
            total = tl.dot((w & 15).to(tl.int8) - zero[:, None], x, total, out_dtype=tl.int32)
            total = tl.dot((w >> 4).to(tl.int8) - zero[:, None], x_second, total, out_dtype=tl.int32)
        else:
            if EVEN:
                x, w = tl.load(x_tap), tl.load(w_tap)
            else:
                x = tl.load(x_tap, mask=inside[None, :], other=0)
                w = tl.load(w_tap, mask=inside[:, None], other=0)
            total = tl.dot(x, w, total, out_dtype=tl.int32)
    return total
# fmt: on
