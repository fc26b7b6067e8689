"""Rounding of one layer with error compensation: weights not yet rounded absorb the error of each rounded weight.

The layer is ``y = W x``. The squared error of ``(W_hat - W) x`` over the samples is a quadratic form in the Hessian,
the inputs' Gram matrix. The columns of W are therefore rounded in sequence, and each error is spread over the rest in
closed form. This is Optimal Brain Quantization in the order and the blocked form of GPTQ (arXiv 2210.17323, section 3).
Deviation: the target is the *full-precision* network's output for its own input, while the layer sees the quantized
network's input. The weights first move to the least-squares fit of that target, and the bias absorbs the remaining
mean.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from bitbrush.numerics.limits import WeightRange
from bitbrush.numerics.weights import QuantizedWeight, WeightQParams, weight_qparams
from bitbrush.rounding.blocks import Rows
from bitbrush.rounding.shards import Shard
from bitbrush.session.offload import (
    CPU,
    IN_MEMORY,
    Offload,
    release,
)

DAMPING = 0.01
DRIFT_RIDGE = 0.05
COLUMNS_PER_BLOCK = 64
ROWS_AT_ONCE = 512
POSITIONS_PER_COLUMN = 4
MIN_POSITIONS = 4096
WHOLE_BYTES = 512 << 20
"""Limit on input columns processed at once; larger inputs are processed in parts of ``PART_BYTES``."""
PART_BYTES = 64 << 20
OFFLOAD_BYTES = 256 << 20
"""Size from which CPU Hessians are offloaded to disk, so that only derived matrices are in memory."""
SOLUTION = ("w_q", "w_fp", "scale", "zero_point", "shift")


@dataclass(frozen=True)
class Compensated:
    """Result of rounding a layer with error compensation.

    Args:
        weight: Integers.
        w_fp: Continuous value of each weight just before it was rounded.
        bias: Corrected bias; None if the layer has none.
    """

    weight: QuantizedWeight
    w_fp: Tensor
    bias: Tensor | None


def round_with_compensation(
    layer: nn.Conv2d | nn.Linear,
    bits: int,
    estimator: WeightRange,
    target_x: Tensor | Rows | None,
    x: Tensor | Rows | None,
    generator: Generator,
    shard: Shard | None = None,
    *,
    offload: Offload = IN_MEMORY,
) -> Compensated:
    """Computes integers and bias so that the layer's output for ``x`` approximates its output for ``target_x``.

    Several processes sum their moments; the first solves and broadcasts its solution.

    Args:
        layer: Layer with full-precision weights; it is unchanged.
        bits: Weight bits.
        estimator: Range estimator of an output channel's weights.
        target_x: Inputs in the full-precision network, (N, C, H, W) or (N, ..., C); None if this process has none.
        x: Inputs of the same samples in the quantized network, in the same shape.
        generator: Generator that samples rows and positions.
        shard: Distribution of the samples over processes; None if all are in this one.
        offload: Storage of large Hessians.

    Returns:
        Integers, the continuous values before rounding, and the corrected bias.
    """
    weight = layer.weight.detach().float().flatten(1)
    shard = shard or Shard.whole(0 if x is None else len(x))
    parts = []
    groups = _group_moments(layer, weight, target_x, x, shard, generator)
    for w, moments in zip(weight.chunk(_groups(layer)), (group.offloaded_to(offload) for group in groups), strict=True):
        # The last bits depend on the machine, so the first process solves for all.
        solved = shard.ranks.from_first(partial(moments.solve, w, bits, estimator))
        assert solved is not None
        parts.append({key: value.to(weight.device) for key, value in solved.items()})
    w_q, w_fp, scale, zero_point, shift = (torch.cat([part[key] for part in parts]) for key in SOLUTION)
    shape, qparams = layer.weight.shape, WeightQParams(scale, zero_point, bits)
    bias = None if layer.bias is None else layer.bias.detach().float() + shift
    return Compensated(QuantizedWeight(w_q.view(shape), qparams), w_fp.view(shape), bias)


def round_by_hessian(weight: Tensor, bits: int, estimator: WeightRange, hessian: Tensor) -> QuantizedWeight:
    """Rounds a weight with error compensation alone, as GPTQ does: the input of the layer is taken as it is.

    Args:
        weight: (C_out, K), float32.
        bits: Weight bits.
        estimator: Range estimator of an output channel's weights.
        hessian: E[x x^T] of the layer's input, (K, K); it is unchanged.

    Returns:
        Integers with one scale and zero point for each row.
    """
    qparams = weight_qparams(weight, bits, estimator)
    return QuantizedWeight(_round_columns(weight, qparams, hessian)[0], qparams)


@dataclass(frozen=True)
class _Moments:
    """Moments of a channel group's inputs.

    Args:
        hessian: E[x x^T], (K, K).
        residual: W E[(target_x - x) x^T], (C_out, K).
        means: Means of ``target_x`` and ``x``, (2, K).
    """

    hessian: Tensor
    residual: Tensor
    means: Tensor

    def offloaded_to(self, offload: Offload) -> "_Moments":
        """Offloads a large CPU Hessian."""
        if self.hessian.nbytes >= OFFLOAD_BYTES and self.hessian.device == CPU:
            offload.put(self.hessian)
        return self

    def solve(self, weight: Tensor, bits: int, estimator: WeightRange) -> dict[str, Tensor]:
        """Returns the entries of SOLUTION."""
        fitted = _fit_drift(weight, self.residual, self.hessian)
        qparams = weight_qparams(fitted, bits, estimator)
        w_q, w_fp = _round_columns(fitted, qparams, self.hessian)
        target_mean, mean = self.means
        shift = weight @ target_mean - QuantizedWeight(w_q, qparams).dequantize() @ mean
        return dict(zip(SOLUTION, (w_q, w_fp, qparams.scale, qparams.zero_point, shift), strict=True))


def _groups(layer: nn.Conv2d | nn.Linear) -> int:
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def _group_moments(
    layer: nn.Conv2d | nn.Linear,
    weight: Tensor,
    target_x: Tensor | Rows | None,
    x: Tensor | Rows | None,
    shard: Shard,
    generator: Generator,
) -> list[_Moments]:
    """Accumulates moments by channel group in parts, so that memory does not grow with the number of positions."""
    groups, size, ranks = _groups(layer), weight.shape[1], shard.ranks
    per_row = torch.tensor(0 if x is None else len(_columns(layer, x[:1], None)))
    sampling = _Sampling.draw(layer, int(ranks.most(per_row)), shard, generator)
    sums = [weight.new_zeros(2, size) for _ in range(groups)]
    hessians = [weight.new_zeros(size, size) for _ in range(groups)]
    residuals = [_ResidualSum(group_weight) for group_weight in weight.chunk(groups)]
    if x is not None and target_x is not None:
        for part, here in _parts(layer, x, sampling.rows, sampling.positions):
            target_columns = _columns(layer, target_x[part], here).chunk(groups, 1)
            columns = _columns(layer, x[part], here).chunk(groups, 1)
            for group, (a, b) in enumerate(zip(target_columns, columns, strict=True)):
                sums[group] += torch.stack([a.sum(0), b.sum(0)])
                _add_upper_hessian_(hessians[group], b)
                residuals[group].add_drift_(a, b)
    for hessian in hessians:
        _mirror_upper_(hessian)
    return [
        _Moments(*(ranks.sum(total).div_(sampling.count) for total in (hessian, residual.total(), means)))
        for hessian, residual, means in zip(hessians, residuals, sums, strict=True)
    ]


class _ResidualSum:
    """Sum ``W sum (target_x - x) x^T``; W multiplies each part if it has few rows, otherwise the final sum."""

    def __init__(self, weight: Tensor) -> None:
        rows, size = weight.shape
        self._weight = weight
        self._narrow = 2 * rows <= size
        self._sum = weight.new_zeros(rows if self._narrow else size, size)

    def add_drift_(self, target_columns: Tensor, columns: Tensor) -> None:
        drift = target_columns.sub_(columns)  # in place, because the columns dominate peak memory
        self._sum.addmm_((drift @ self._weight.T if self._narrow else drift).T, columns)

    def total(self) -> Tensor:
        return self._sum if self._narrow else self._weight @ self._sum


def _add_upper_hessian_(hessian: Tensor, columns: Tensor) -> None:
    """Adds ``columns^T columns`` to the blocks of ``hessian`` on and above the diagonal, which halves the work."""
    for begin in range(0, len(hessian), ROWS_AT_ONCE):
        part = slice(begin, begin + ROWS_AT_ONCE)
        hessian[part, begin:].addmm_(columns[:, part].T, columns[:, begin:])


def _mirror_upper_(hessian: Tensor) -> None:
    for begin in range(0, len(hessian), ROWS_AT_ONCE):
        end = begin + ROWS_AT_ONCE
        hessian[end:, begin:end] = hessian[begin:end, end:].T


def _parts(
    layer: nn.Conv2d | nn.Linear, x: Tensor | Rows, rows: Tensor, positions: Tensor | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yields rows, and positions within them, to process together; one part if everything fits."""
    per_row = _columns(layer, x[:1], None).shape[0]
    row_bytes = x[:1].element_size() * layer.weight[0].numel() * per_row
    if row_bytes * len(rows) <= WHOLE_BYTES:
        yield rows, positions
        return
    for part in torch.arange(len(rows)).split(max(1, PART_BYTES // row_bytes)):
        here = None
        if positions is not None:
            begin, end = int(part[0]) * per_row, (int(part[-1]) + 1) * per_row
            here = positions[(positions >= begin) & (positions < end)] - begin
        yield rows[part], here


@dataclass(frozen=True)
class _Sampling:
    """Sampled inputs of a layer.

    Args:
        rows: Rows of this process.
        positions: Output positions within these rows; None for all.
        count: Positions in all processes.
    """

    rows: Tensor
    positions: Tensor | None
    count: int

    @classmethod
    def draw(cls, layer: nn.Conv2d | nn.Linear, per_row: int, shard: Shard, generator: Generator) -> "_Sampling":
        """Draws enough positions for the Hessian, the same in all processes; takes all if there are few."""
        target = max(MIN_POSITIONS, POSITIONS_PER_COLUMN * layer.weight[0].numel())
        rows = torch.randperm(shard.rows, generator=generator)[: -(-2 * target // per_row)]
        available = len(rows) * per_row
        local_rows = shard.local_indices(rows)
        if available <= target:
            return cls(local_rows, None, available)
        positions = torch.randperm(available, generator=generator)[:target]
        here = shard.local[rows] >= 0
        row = positions // per_row
        local_row = here.cumsum(0)[row] - 1
        return cls(local_rows, (local_row * per_row + positions % per_row)[here[row]], target)


def _columns(layer: nn.Conv2d | nn.Linear, x: Tensor, positions: Tensor | None) -> Tensor:
    """Returns the vectors that the weight rows multiply, (positions, C_in * kernel), float32."""
    if not isinstance(layer, nn.Conv2d):
        rows = x.float().flatten(0, -2)
        return rows if positions is None else rows[positions]
    windows = _windows(layer, x.float())
    if positions is None:
        return windows.flatten(3).flatten(0, 2)
    columns = x.new_empty(len(positions), windows.shape[3:].numel(), dtype=torch.float32)
    for begin in range(0, len(positions), ROWS_AT_ONCE):  # gathering changes the memory layout, so few rows at a time
        part = slice(begin, begin + ROWS_AT_ONCE)
        columns[part] = windows[torch.unravel_index(positions[part], windows.shape[:3])].flatten(1)
    return columns


def _windows(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Returns a view of the convolution's window at each output position, (N, H_out, W_out, C_in, kernel H, kernel W).

    Positions can thus be selected before any copy; an unfolded copy of all would dominate the memory of learned
    rounding.
    """
    assert not isinstance(layer.padding, str)
    (height, width), (down, right) = layer.padding, layer.stride
    padded = F.pad(x, (width, width, height, height)).contiguous(memory_format=torch.channels_last)
    reach = [apart * (size - 1) + 1 for apart, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    windows = padded.unfold(2, reach[0], down).unfold(3, reach[1], right)
    return windows[..., :: layer.dilation[0], :: layer.dilation[1]].permute(0, 2, 3, 1, 4, 5)


def _fit_drift(weight: Tensor, residual: Tensor, hessian: Tensor) -> Tensor:
    """Returns ``W + W D (G + r I)^-1``, D = E[(target_x - x) x^T]: the ridge fit of ``W target_x`` on ``x``."""
    factor = _cholesky_(_damp_(_by_columns(hessian), DRIFT_RIDGE))
    return weight + torch.cholesky_solve(residual.T, factor).T


def _by_columns(matrix: Tensor, order: Tensor | None = None) -> Tensor:
    """Copies the matrix with rows and columns in ``order``, in LAPACK's memory layout, for later in-place steps."""
    copied = torch.empty_like(matrix).T
    for rows in torch.arange(len(matrix)).split(COLUMNS_PER_BLOCK):
        copied[rows[0] : rows[-1] + 1] = matrix[rows] if order is None else matrix[order[rows]][:, order]
        release(matrix)
    return copied


def _damp_(matrix: Tensor, share: float) -> Tensor:
    # The floor keeps the system solvable for a layer with all-zero inputs (a dead ReLU, an unused token).
    mean = matrix.diagonal().mean().clamp_min(1e-12)
    matrix.diagonal().add_(share * mean)
    return matrix


def _cholesky_(matrix: Tensor) -> Tensor:
    torch.linalg.cholesky(matrix, out=matrix)
    return matrix


def _inverse_of_lower_(factor: Tensor) -> Tensor:
    """Inverts a lower triangular matrix in place, which torch lacks: rows from the top, ``-L_ii^-1 L_ij (L^-1)_jk``."""
    for begin in range(0, len(factor), ROWS_AT_ONCE):
        end = begin + ROWS_AT_ONCE
        corner = factor[begin:end, begin:end]
        corner_inverse = torch.linalg.solve_triangular(
            corner, torch.eye(len(corner), device=corner.device), upper=False
        )
        panel = factor[begin:end, :begin].clone()
        for column in range(0, begin, ROWS_AT_ONCE):
            columns = slice(column, column + ROWS_AT_ONCE)
            factor[begin:end, columns] = -corner_inverse @ (panel[:, column:] @ factor[column:begin, columns])
        factor[begin:end, begin:end] = corner_inverse
    return factor


def _round_columns(weight: Tensor, qparams: WeightQParams, hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds columns in sequence; returns integers, uint8, and the compensated values before rounding, both (C_out, K).

    Columns are ordered by descending input power, which leaves the least error to the last ones. Errors are spread by
    the upper Cholesky factor U of the inverse Hessian, ``G^-1 = U^T U``. The Hessian with reversed column order factors
    into ``L L^T``, and ``L^-1`` rotated by 180 degrees is U. This takes a third of the work of an inversion.
    """
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    w = weight[:, order].clone()
    turned = _inverse_of_lower_(_cholesky_(_damp_(_by_columns(hessian, order.flip(0)), DAMPING)))
    w_q, w_fp = torch.empty_like(w), torch.empty_like(w)
    width = w.shape[1]
    scale, zero_point = qparams.scale, qparams.zero_point.float()
    for begin in range(0, width, COLUMNS_PER_BLOCK):
        end = min(begin + COLUMNS_PER_BLOCK, width)
        factor = turned[width - end : width - begin, : width - begin].flip(0, 1)
        rest = w[:, begin:end].T.contiguous()
        errors = torch.empty_like(rest)
        for i in range(end - begin):
            x_q = (rest[i] / scale).round_().add_(zero_point).clamp_(0, qparams.qmax)
            w_q[:, begin + i], w_fp[:, begin + i] = x_q, rest[i]
            errors[i] = (rest[i] - (x_q - zero_point) * scale) / factor[i, i]
            rest[i + 1 :].addr_(factor[i, i + 1 : end - begin], errors[i], alpha=-1)
        w[:, end:] -= errors.T @ factor[:, end - begin :]
    back = torch.argsort(order)
    return w_q[:, back].to(torch.uint8), w_fp[:, back]
