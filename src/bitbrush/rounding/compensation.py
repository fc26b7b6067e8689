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

DAMPING = 0.01
DRIFT_RIDGE = 0.05
COLUMNS_PER_BLOCK = 64
POSITIONS_PER_COLUMN = 4
MIN_POSITIONS = 4096


@dataclass(frozen=True)
class Compensated:
    """``weight``: the integers; ``wanted``: the continuous value each weight had when it was rounded; ``bias``."""

    weight: QuantizedWeight
    wanted: Tensor
    bias: Tensor | None


def round_with_compensation(
    layer: nn.Conv2d | nn.Linear, bits: int, estimator: WeightRange, target_x: Tensor, x: Tensor, generator: Generator
) -> Compensated:
    """Integers and bias with which the layer, given ``x``, comes close to its output given ``target_x``.

    ``target_x``, ``x``: the same samples' inputs in the full-precision and in the quantized network, (N, C, H, W) or
    (N, ..., C). ``layer`` holds full-precision weights and stays as it is.
    """
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    weight = layer.weight.detach().float().flatten(1)
    rows, positions = _sampling(layer, x, generator)
    target_columns = _columns(layer, target_x[rows], positions).chunk(groups, 1)
    columns = _columns(layer, x[rows], positions).chunk(groups, 1)
    integers, wanted, grids, shift = [], [], [], []
    for w, a, b in zip(weight.chunk(groups), target_columns, columns, strict=True):
        gram = b.T @ b / len(b)
        fitted = _fit_drift(w, (a - b).T @ b / len(b), gram)
        grid = weight_grid(fitted, bits, estimator)
        w_q, w_wanted = _round_columns(fitted, grid, gram)
        shift.append(w @ a.mean(0) - QuantizedWeight(w_q, grid).dequantize() @ b.mean(0))
        integers.append(w_q)
        wanted.append(w_wanted)
        grids.append(grid)
    shape = layer.weight.shape
    grid = WeightGrid(torch.cat([g.scale for g in grids]), torch.cat([g.zero_point for g in grids]), bits)
    bias = None if layer.bias is None else layer.bias.detach().float() + torch.cat(shift)
    return Compensated(QuantizedWeight(torch.cat(integers).view(shape), grid), torch.cat(wanted).view(shape), bias)


def _sampling(layer: nn.Conv2d | nn.Linear, x: Tensor, generator: Generator) -> tuple[Tensor, Tensor | None]:
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
