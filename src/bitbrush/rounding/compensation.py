"""Rounding one layer so that each weight's error is made up for by the weights not yet rounded.

For ``y = W x`` the squared error of ``(W_hat - W) x`` over the samples is a quadratic form in the Gram matrix of the
inputs, so the columns of W can be rounded one after another, each error spread over the rest in closed form: Optimal
Brain Quantization in the order and the blocked form of GPTQ (arXiv 2210.17323, section 3). Here the target is the
*full-precision* network's output at its own input, while the layer sees the quantized network's input, so the weights
first move to the least-squares fit of that target, and the bias takes up what remains of the mean.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from bitbrush.numerics.weights import QuantizedWeight, WeightGrid, WeightRange, weight_grid
from bitbrush.rounding.blocks import Rows

DAMPING = 0.01
DRIFT_RIDGE = 0.05
COLUMNS_PER_BLOCK = 64
POSITIONS_PER_COLUMN = 4
MIN_POSITIONS = 4096
WHOLE_BYTES = 512 << 20
"""Of a layer's inputs as columns: so many are taken at once, more in parts of ``PART_BYTES``."""
PART_BYTES = 64 << 20


@dataclass(frozen=True)
class Compensated:
    """``weight``: the integers; ``wanted``: the continuous value each weight had when it was rounded; ``bias``."""

    weight: QuantizedWeight
    wanted: Tensor
    bias: Tensor | None


def round_with_compensation(
    layer: nn.Conv2d | nn.Linear,
    bits: int,
    estimator: WeightRange,
    target_x: Tensor | Rows,
    x: Tensor | Rows,
    generator: Generator,
) -> Compensated:
    """Integers and bias with which the layer, given ``x``, comes close to its output given ``target_x``.

    ``target_x``, ``x``: the same samples' inputs in the full-precision and in the quantized network, (N, C, H, W) or
    (N, ..., C). ``layer`` holds full-precision weights and stays as it is.
    """
    weight = layer.weight.detach().float().flatten(1)
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    integers, wanted, grids, shift = [], [], [], []
    for w, seen in zip(weight.chunk(groups), _seen(layer, weight, target_x, x, generator), strict=True):
        fitted = _fit_drift(w, seen.pull, seen.gram)
        grid = weight_grid(fitted, bits, estimator)
        w_q, w_wanted = _round_columns(fitted, grid, seen.gram)
        shift.append(w @ seen.target_mean - QuantizedWeight(w_q, grid).dequantize() @ seen.mean)
        integers.append(w_q)
        wanted.append(w_wanted)
        grids.append(grid)
    shape = layer.weight.shape
    grid = WeightGrid(torch.cat([g.scale for g in grids]), torch.cat([g.zero_point for g in grids]), bits)
    bias = None if layer.bias is None else layer.bias.detach().float() + torch.cat(shift)
    return Compensated(QuantizedWeight(torch.cat(integers).view(shape), grid), torch.cat(wanted).view(shape), bias)


@dataclass(frozen=True)
class _Seen:
    """Of a group of a layer's inputs: ``gram`` E[x x^T], ``pull`` W E[(target_x - x) x^T], and their means."""

    gram: Tensor
    pull: Tensor
    target_mean: Tensor
    mean: Tensor


def _seen(
    layer: nn.Conv2d | nn.Linear, weight: Tensor, target_x: Tensor | Rows, x: Tensor | Rows, generator: Generator
) -> list[_Seen]:
    """By group of channels; summed up part by part, so that what is held does not grow with the number of positions."""
    rows, positions = _sampling(layer, x, generator)
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    size = weight.shape[1]
    count, sums = 0, [torch.zeros(2, size) for _ in range(groups)]
    grams, drifts = ([torch.zeros(size, size) for _ in range(groups)] for _ in range(2))
    for part, here in _parts(layer, x, rows, positions):
        target_columns = _columns(layer, target_x[part], here).chunk(groups, 1)
        columns = _columns(layer, x[part], here).chunk(groups, 1)
        count += len(columns[0])
        for group, (a, b) in enumerate(zip(target_columns, columns, strict=True)):
            sums[group] += torch.stack([a.sum(0), b.sum(0)])
            grams[group].addmm_(b.T, b)
            drifts[group].addmm_((a - b).T, b)
    # Popped: the matrix is as large as the Gram matrix, and not needed beside what comes next.
    pulls = [w @ drifts.pop(0).div_(count) for w in weight.chunk(groups)]
    return [
        _Seen(gram.div_(count), pull, *(total / count)) for gram, pull, total in zip(grams, pulls, sums, strict=True)
    ]


def _parts(
    layer: nn.Conv2d | nn.Linear, x: Tensor | Rows, rows: Tensor, positions: Tensor | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The rows, and the positions among theirs, that are looked at together: all, unless they are too many."""
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


def _sampling(layer: nn.Conv2d | nn.Linear, x: Tensor | Rows, generator: Generator) -> tuple[Tensor, Tensor | None]:
    """Rows of ``x``, and of their output positions, that suffice for the Gram matrix; all where there are few."""
    wanted = max(MIN_POSITIONS, POSITIONS_PER_COLUMN * layer.weight[0].numel())
    per_row = _columns(layer, x[:1], None).shape[0]
    rows = torch.randperm(len(x), generator=generator)[: -(-2 * wanted // per_row)]
    available = len(rows) * per_row
    positions = torch.randperm(available, generator=generator)[:wanted] if available > wanted else None
    return rows, positions


def _columns(layer: nn.Conv2d | nn.Linear, x: Tensor, positions: Tensor | None) -> Tensor:
    """The vectors that the weight rows are multiplied with, (positions, C_in * kernel), float32."""
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str)
        unfolded = F.unfold(
            x.float(), layer.kernel_size, dilation=layer.dilation, padding=layer.padding, stride=layer.stride
        )
        columns = unfolded.transpose(1, 2).flatten(0, 1)
    else:
        columns = x.float().flatten(0, -2)
    return columns if positions is None else columns[positions]


def _fit_drift(weight: Tensor, pull: Tensor, gram: Tensor) -> Tensor:
    """``W + W D (G + r I)^-1``, D = E[(target_x - x) x^T]: the ridge fit of ``W target_x`` by a function of ``x``."""
    return weight + pull @ _inverse_(_damp_(_by_columns(gram), DRIFT_RIDGE))


def _by_columns(matrix: Tensor, order: Tensor | None = None) -> Tensor:
    """A copy, rows and columns in ``order``, laid out as LAPACK wants it: what follows works in its place."""
    copied = torch.empty_like(matrix).T
    for rows in torch.arange(len(matrix)).split(COLUMNS_PER_BLOCK):
        copied[rows[0] : rows[-1] + 1] = matrix[rows] if order is None else matrix[order[rows]][:, order]
    return copied


def _damp_(matrix: Tensor, share: float) -> Tensor:
    # The floor keeps a layer whose inputs are all zero (a ReLU that died, an unused token) solvable.
    mean = matrix.diagonal().mean().clamp_min(1e-12)
    matrix.diagonal().add_(share * mean)
    return matrix


def _inverse_(matrix: Tensor) -> Tensor:
    torch.linalg.cholesky(matrix, out=matrix)
    return torch.cholesky_inverse(matrix, out=matrix)


def _round_columns(weight: Tensor, grid: WeightGrid, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Integers, uint8, and the compensated values they were rounded from; both (C_out, K).

    Columns go by descending input power, the order that leaves the least error to the last ones.
    """
    order = torch.argsort(gram.diagonal(), descending=True, stable=True)
    w = weight[:, order].clone()
    factor = _inverse_(_damp_(_by_columns(gram, order), DAMPING))
    torch.linalg.cholesky(factor, upper=True, out=factor)
    scale, zero_point = grid.scale, grid.zero_point.float()
    w_q, wanted = torch.empty_like(w), torch.empty_like(w)
    for begin in range(0, w.shape[1], COLUMNS_PER_BLOCK):
        end = min(begin + COLUMNS_PER_BLOCK, w.shape[1])
        rest = w[:, begin:end].T.contiguous()
        errors = torch.empty_like(rest)
        corner = factor[begin:end, begin:end].contiguous()
        for i in range(end - begin):
            x_q = (rest[i] / scale).round_().add_(zero_point).clamp_(0, grid.qmax)
            w_q[:, begin + i], wanted[:, begin + i] = x_q, rest[i]
            errors[i] = (rest[i] - (x_q - zero_point) * scale) / corner[i, i]
            rest[i + 1 :].addr_(corner[i, i + 1 :], errors[i], alpha=-1)
        w[:, end:] -= errors.T @ factor[begin:end, end:]
    back = torch.argsort(order)
    return w_q[:, back].to(torch.uint8), wanted[:, back]
