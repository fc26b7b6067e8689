"""Block reconstruction: the rounding of all layers of a block, learned together on the block's output.

The loss is BRECQ's (arXiv 2102.05426): the squared error of the block's output for quantized inputs against
full-precision targets. The rounding is learned as in arXiv 2309.05516: an offset is added before a straight-through
round and moved by the sign of its gradient. Deviation: PCR names AdaRound's sigmoid relaxation (arXiv 2004.10568),
which needs thousands of annealed iterations before it rounds at all. The straight-through form starts from compensated
rounding, evaluates the hard rounding from its first iteration and needs tens. ``benchmarks/rounding.py`` measures both
stages.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.func import functional_call

from bitbrush.numerics.weights import QuantizedWeight
from bitbrush.rounding.blocks import BlockInputs, Rows, as_rows
from bitbrush.rounding.compensation import Compensated
from bitbrush.rounding.shards import Shard

ITERATIONS = 60
BATCH_ROWS = 16
STEP = 0.01
CHECK_EVERY = 15
PATIENCE = 2
HELD_OUT = 64
PASS_BYTES = 32 << 20
"""Limit on a block's inputs per pass; more rows run in several passes, and their gradients are summed."""


@dataclass(frozen=True)
class Block:
    """Block to reconstruct, with inputs and targets of this process; rows are numbered over all processes.

    Args:
        module: Block in the quantized network.
        layers: Start of the rounding of each layer, by its name within the block ("" for the block itself).
        inputs: Quantized inputs of this process; None if it has none.
        targets: Full-precision outputs of this process; None if it has none.
        shard: Distribution of the rows over processes.
    """

    module: nn.Module
    layers: Mapping[str, Compensated]
    inputs: BlockInputs | None
    targets: Tensor | Rows | None
    shard: Shard

    def passes(self, rows: Tensor) -> list[tuple[Tensor, float]]:
        """Returns this process's share of ``rows``, split into passes, each with its fraction of all rows."""
        local_rows = self.shard.local_indices(rows)
        if self.inputs is None or not len(local_rows):
            return []
        at_once = max(1, PASS_BYTES // max(1, self.inputs.row_bytes))
        parts = [part for of_kind in self.inputs.of_one_kind(local_rows) for part in of_kind.split(at_once)]
        return [(part, len(part) / len(rows)) for part in parts]

    @property
    def second_dimension(self) -> int:
        """Second dimension of the output: an image's channels, or tokens."""
        assert self.targets is not None
        return int(self.targets[:1].shape[1])

    def loss(self, weights: Mapping[str, Tensor], local_rows: Tensor) -> Tensor:
        """Computes the mean squared output error for rows of this process."""
        assert self.inputs is not None
        assert self.targets is not None
        args, kwargs = self.inputs.take(local_rows)
        named = {f"{name}.weight".lstrip("."): weight for name, weight in weights.items()}
        return F.mse_loss(as_rows(functional_call(self.module, named, args, kwargs)), self.targets[local_rows])


def reconstruct(
    module: nn.Module,
    layers: Mapping[str, Compensated],
    inputs: BlockInputs | None,
    targets: Tensor | Rows | None,
    generator: Generator,
    shard: Shard | None = None,
) -> dict[str, QuantizedWeight]:
    """Learns the rounding of a block's layers together, and returns the best integers on held-out rows.

    The start is among the candidates. Learning stops early after two checks without improvement. Fewer than four rows
    allow no held-out row; the start is returned. Processes average their gradients and errors.

    Args:
        module: Block in the quantized network.
        layers: Start of the rounding of each layer, by its name within the block.
        inputs: Quantized inputs of this process; None if it has none.
        targets: Full-precision outputs of this process, (rows, ...), from :func:`as_rows`; None if it has none.
        generator: Generator that draws batches and held-out rows.
        shard: Distribution of the rows over processes; None if all are in this one.

    Returns:
        Integers by layer name.
    """
    block = Block(module, layers, inputs, targets, shard or Shard.whole(inputs.rows if inputs else 0))
    order = torch.randperm(block.shard.rows, generator=generator)
    held_out = order[: min(HELD_OUT, block.shard.rows // 4)]
    training = order[len(held_out) :]
    offsets = {name: torch.zeros_like(layer.w_fp).requires_grad_() for name, layer in layers.items()}
    best = {name: layer.weight for name, layer in layers.items()}
    if not len(held_out):
        return best
    least, misses = _held_out_loss(block, best, held_out), 0
    for iteration in range(ITERATIONS):
        rows = training[torch.randint(len(training), (BATCH_ROWS,), generator=generator)]
        _descend(block, offsets, rows, STEP * (1 - iteration / ITERATIONS))
        if (iteration + 1) % CHECK_EVERY == 0:
            candidate = {name: _integers(layers[name], offset.detach()) for name, offset in offsets.items()}
            loss = _held_out_loss(block, candidate, held_out)
            if loss < least:
                best, least, misses = candidate, loss, 0
            elif (misses := misses + 1) == PATIENCE:
                break
    return best


def _descend(block: Block, offsets: Mapping[str, Tensor], rows: Tensor, step: float) -> None:
    gradients = [torch.zeros_like(offset) for offset in offsets.values()]
    for part, share in block.passes(rows):
        with torch.enable_grad():
            weights = {name: _straight_through(block.layers[name], offset) for name, offset in offsets.items()}
            loss = block.loss(weights, part) * share
            of_part = torch.autograd.grad(loss, list(offsets.values()), materialize_grads=True)  # experts may be idle
        for gradient, more in zip(gradients, of_part, strict=True):
            gradient += more
    for offset, gradient in zip(offsets.values(), gradients, strict=True):
        offset.detach().sub_(block.shard.ranks.sum(gradient).sign(), alpha=step)


def _straight_through(layer: Compensated, offset: Tensor) -> Tensor:
    """Computes ``scale * (clamp(round(w_fp / scale + offset) + zero_point, 0, qmax) - zero_point)``, round' = 1."""
    qparams = layer.weight.qparams
    scale, zero_point = qparams.per_channel(layer.w_fp)
    moved = layer.w_fp / scale + offset
    rounded = moved + (moved.round() - moved).detach()
    return scale * ((rounded + zero_point).clamp(0, qparams.qmax) - zero_point)


def _integers(layer: Compensated, offset: Tensor) -> QuantizedWeight:
    qparams = layer.weight.qparams
    scale, zero_point = qparams.per_channel(layer.w_fp)
    return QuantizedWeight(((layer.w_fp / scale + offset).round() + zero_point).clamp(0, qparams.qmax).byte(), qparams)


@torch.no_grad()
def _held_out_loss(block: Block, weights: Mapping[str, QuantizedWeight], rows: Tensor) -> float:
    floats = {name: weight.dequantize() for name, weight in weights.items()}
    local_loss = sum(float(block.loss(floats, part)) * share for part, share in block.passes(rows))
    return float(block.shard.ranks.sum(torch.tensor(local_loss, dtype=torch.float64)))
