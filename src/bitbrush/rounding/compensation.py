"""Rounding one layer so that each weight's error is made up for by the weights not yet rounded.

For ``y = W x`` the squared error of ``(W_hat - W) x`` over the samples is a quadratic form in the Gram matrix of the
inputs, so the columns of W can be rounded one after another, each error spread over the rest in closed form: Optimal
Brain Quantization in the order and the blocked form of GPTQ (arXiv 2210.17323, section 3). Here the target is the
*full-precision* network's output at its own input, while the layer sees the quantized network's input, so the weights
first move to the least-squares fit of that target, and the bias takes up what remains of the mean.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from bitbrush.numerics.weights import QuantizedWeight, WeightGrid, WeightRange, weight_grid
from bitbrush.rounding.blocks import Rows
from bitbrush.rounding.shards import Shard

DAMPING = 0.01
DRIFT_RIDGE = 0.05
COLUMNS_PER_BLOCK = 64
POSITIONS_PER_COLUMN = 4
MIN_POSITIONS = 4096
WHOLE_BYTES = 512 << 20
"""Of a layer's inputs as columns: so many are taken at once, more in parts of ``PART_BYTES``."""
PART_BYTES = 64 << 20
SOLUTION = ("w_q", "wanted", "scale", "zero_point", "shift")


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
    target_x: Tensor | Rows | None,
    x: Tensor | Rows | None,
    generator: Generator,
    shard: Shard | None = None,
) -> Compensated:
    """Integers and bias with which the layer, given ``x``, comes close to its output given ``target_x``.

    ``target_x``, ``x``: the same samples' inputs in the full-precision and in the quantized network, (N, C, H, W) or
    (N, ..., C). ``layer`` holds full-precision weights and stays as it is. Where the samples are spread over processes,
    ``shard`` says how, and the inputs are this one's, None if it has none: their moments are added up, the first
    process solves, and all are given its solution.
    """
    weight = layer.weight.detach().float().flatten(1)
    shard = shard or Shard.whole(0 if x is None else len(x))
    parts = []
    for w, seen in zip(weight.chunk(_groups(layer)), _seen(layer, weight, target_x, x, shard, generator), strict=True):
        # Which machine solves decides the last bits: the first does it for all.
        solved = shard.ranks.from_first(partial(seen.solve, w, bits, estimator))
        assert solved is not None
        parts.append(solved)
    w_q, wanted, scale, zero_point, shift = (torch.cat([part[key] for part in parts]) for key in SOLUTION)
    shape, grid = layer.weight.shape, WeightGrid(scale, zero_point, bits)
    bias = None if layer.bias is None else layer.bias.detach().float() + shift
    return Compensated(QuantizedWeight(w_q.view(shape), grid), wanted.view(shape), bias)


@dataclass(frozen=True)
class _Seen:
    """Of a group of a layer's inputs: ``gram`` E[x x^T], ``pull`` W E[(target_x - x) x^T], and their means."""

    gram: Tensor
    pull: Tensor
    target_mean: Tensor
    mean: Tensor

    def solve(self, weight: Tensor, bits: int, estimator: WeightRange) -> dict[str, Tensor]:
        """The entries of SOLUTION."""
        fitted = _fit_drift(weight, self.pull, self.gram)
        grid = weight_grid(fitted, bits, estimator)
        w_q, wanted = _round_columns(fitted, grid, self.gram)
        shift = weight @ self.target_mean - QuantizedWeight(w_q, grid).dequantize() @ self.mean
        return dict(zip(SOLUTION, (w_q, wanted, grid.scale, grid.zero_point, shift), strict=True))


def _groups(layer: nn.Conv2d | nn.Linear) -> int:
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def _seen(
    layer: nn.Conv2d | nn.Linear,
    weight: Tensor,
    target_x: Tensor | Rows | None,
    x: Tensor | Rows | None,
    shard: Shard,
    generator: Generator,
) -> list[_Seen]:
    """By group of channels; summed up part by part, so that what is held does not grow with the number of positions."""
    groups, size, ranks = _groups(layer), weight.shape[1], shard.ranks
    per_row = torch.tensor(0 if x is None else len(_columns(layer, x[:1], None)))
    sampling = _Sampling.draw(layer, int(ranks.most(per_row)), shard, generator)
    sums = [torch.zeros(2, size) for _ in range(groups)]
    grams, drifts = ([torch.zeros(size, size) for _ in range(groups)] for _ in range(2))
    if x is not None and target_x is not None:
        for part, here in _parts(layer, x, sampling.rows, sampling.positions):
            target_columns = _columns(layer, target_x[part], here).chunk(groups, 1)
            columns = _columns(layer, x[part], here).chunk(groups, 1)
            for group, (a, b) in enumerate(zip(target_columns, columns, strict=True)):
                sums[group] += torch.stack([a.sum(0), b.sum(0)])
                grams[group].addmm_(b.T, b)
                drifts[group].addmm_((a - b).T, b)
    # Popped: the matrix is as large as the Gram matrix, and not needed beside what comes next.
    pulls = [ranks.sum(w @ drifts.pop(0).div_(sampling.count)) for w in weight.chunk(groups)]
    return [
        _Seen(ranks.sum(gram.div_(sampling.count)), pull, *ranks.sum(total.div_(sampling.count)))
        for gram, pull, total in zip(grams, pulls, sums, strict=True)
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


@dataclass(frozen=True)
class _Sampling:
    """``rows`` of this process, and of their output positions, all or some; ``count``: positions in all processes."""

    rows: Tensor
    positions: Tensor | None
    count: int

    @classmethod
    def draw(cls, layer: nn.Conv2d | nn.Linear, per_row: int, shard: Shard, generator: Generator) -> "_Sampling":
        """As many as suffice for the Gram matrix, the same in all processes; all where there are few."""
        wanted = max(MIN_POSITIONS, POSITIONS_PER_COLUMN * layer.weight[0].numel())
        rows = torch.randperm(shard.rows, generator=generator)[: -(-2 * wanted // per_row)]
        available = len(rows) * per_row
        own = shard.own(rows)
        if available <= wanted:
            return cls(own, None, available)
        positions = torch.randperm(available, generator=generator)[:wanted]
        here = shard.local[rows] >= 0
        row = positions // per_row
        own_row = here.cumsum(0)[row] - 1
        return cls(own, (own_row * per_row + positions % per_row)[here[row]], wanted)


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
