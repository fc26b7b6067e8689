"""Rounding one layer so that each weight's error is made up for by the weights not yet rounded.

For ``y = W x`` the squared error of ``(W_hat - W) x`` over the samples is a quadratic form in the Gram matrix of the
inputs, so the columns of W can be rounded one after another, each error spread over the rest in closed form: Optimal
Brain Quantization in the order and the blocked form of GPTQ (arXiv 2210.17323, section 3). Here the target is the
*full-precision* network's output at its own input, while the layer sees the quantized network's input, so the weights
first move to the least-squares fit of that target, and the bias takes up what remains of the mean.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from bitbrush.numerics.weights import QuantizedWeight, WeightGrid, WeightRange, weight_grid
from bitbrush.rounding.shards import Shard
from bitbrush.timeline.ranks import Ranks

DAMPING = 0.01
DRIFT_RIDGE = 0.05
COLUMNS_PER_BLOCK = 64
POSITIONS_PER_COLUMN = 4
MIN_POSITIONS = 4096
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
    target_x: Tensor | None,
    x: Tensor | None,
    generator: Generator,
    shard: Shard | None = None,
) -> Compensated:
    """Integers and bias with which the layer, given ``x``, comes close to its output given ``target_x``.

    ``target_x``, ``x``: the same samples' inputs in the full-precision and in the quantized network, (N, C, H, W) or
    (N, ..., C). ``layer`` holds full-precision weights and stays as it is. Where the samples are spread over processes,
    ``shard`` says how, and the inputs are this one's, None if it has none: their moments are added up, the first
    process solves, and all are given its solution.
    """
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    weight = layer.weight.detach().float().flatten(1)
    shard = shard or Shard.whole(0 if x is None else len(x))
    target_columns, columns, count = _sampled_columns(layer, target_x, x, shard, generator)
    parts = [
        _Moments.of(a, b, count, shard.ranks).solve(w, bits, estimator, shard.ranks)
        for w, a, b in zip(weight.chunk(groups), target_columns.chunk(groups, 1), columns.chunk(groups, 1), strict=True)
    ]
    w_q, wanted, scale, zero_point, shift = (torch.cat([part[key] for part in parts]) for key in SOLUTION)
    shape, grid = layer.weight.shape, WeightGrid(scale, zero_point, bits)
    bias = None if layer.bias is None else layer.bias.detach().float() + shift
    return Compensated(QuantizedWeight(w_q.view(shape), grid), wanted.view(shape), bias)


@dataclass(frozen=True)
class _Moments:
    """Over all positions of all processes: ``gram`` E[x x^T], ``drift`` E[(target_x - x) x^T], and both means."""

    gram: Tensor
    drift: Tensor
    target_mean: Tensor
    mean: Tensor

    @classmethod
    def of(cls, target_x: Tensor, x: Tensor, count: int, ranks: Ranks) -> "_Moments":
        """``target_x``, ``x``: (positions, K) of this process; ``count``: positions of all."""
        products = (x.T @ x, (target_x - x).T @ x, target_x.sum(0), x.sum(0))
        return cls(*(ranks.sum(product.div_(count)) for product in products))

    def solve(self, weight: Tensor, bits: int, estimator: WeightRange, ranks: Ranks) -> dict[str, Tensor]:
        """The entries of SOLUTION, found by the first process: which machine solves decides the last bits."""

        def solution() -> dict[str, Tensor]:
            fitted = _fit_drift(weight, self.drift, self.gram)
            grid = weight_grid(fitted, bits, estimator)
            w_q, wanted = _round_columns(fitted, grid, self.gram)
            shift = weight @ self.target_mean - QuantizedWeight(w_q, grid).dequantize() @ self.mean
            return dict(zip(SOLUTION, (w_q, wanted, grid.scale, grid.zero_point, shift), strict=True))

        solved = ranks.from_first(solution)
        assert solved is not None
        return solved


def _sampled_columns(
    layer: nn.Conv2d | nn.Linear, target_x: Tensor | None, x: Tensor | None, shard: Shard, generator: Generator
) -> tuple[Tensor, Tensor, int]:
    """This process's share of the sampled columns of both, and how many there are in all."""
    per_row = torch.tensor(0 if x is None else len(_columns(layer, x[:1], None)))
    sampling = _Sampling.draw(layer, int(shard.ranks.most(per_row)), shard, generator)
    if x is None or target_x is None:
        none = torch.zeros(0, layer.weight[0].numel() * (layer.groups if isinstance(layer, nn.Conv2d) else 1))
        return none, none, sampling.count
    rows, positions = sampling.rows, sampling.positions
    return _columns(layer, target_x[rows], positions), _columns(layer, x[rows], positions), sampling.count


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


def _fit_drift(weight: Tensor, drift: Tensor, gram: Tensor) -> Tensor:
    """``W + W D (G + r I)^-1``, D = E[(target_x - x) x^T]: the ridge fit of ``W target_x`` by a function of ``x``."""
    return weight + weight @ drift @ torch.cholesky_inverse(torch.linalg.cholesky(_damped(gram, DRIFT_RIDGE)))


def _damped(gram: Tensor, share: float) -> Tensor:
    # The floor keeps a layer whose inputs are all zero (a ReLU that died, an unused token) solvable.
    mean = gram.diagonal().mean().clamp_min(1e-12)
    return gram + torch.eye(len(gram)) * (share * mean)


def _round_columns(weight: Tensor, grid: WeightGrid, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Integers, uint8, and the compensated values they were rounded from; both (C_out, K).

    Columns go by descending input power, the order that leaves the least error to the last ones.
    """
    order = torch.argsort(gram.diagonal(), descending=True, stable=True)
    w = weight[:, order].clone()
    damped = _damped(gram[order][:, order], DAMPING)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True)
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
