"""Block reconstruction: the rounding of all layers of a block, learned together on the block's output.

The loss is BRECQ's (arXiv 2102.05426): squared error of the block's output, quantized inputs against full-precision
targets. The rounding is learned as in arXiv 2309.05516: an offset is added before a straight-through round and moved
by the sign of its gradient. AdaRound's sigmoid relaxation (arXiv 2004.10568), which PCR names, must be annealed over
thousands of iterations before it rounds to anything; started from compensated rounding, the straight-through form
evaluates the hard rounding from its first iteration and needs tens. ``benchmarks/rounding.py`` measures both stages.
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
"""Of the inputs that go through a block at once: rows of more are passed in parts, and their gradients summed."""


@dataclass(frozen=True)
class Block:
    """``layers``: start of the rounding of each layer, by its name within the block ("" for the block itself).

    ``inputs`` and ``targets`` are this process's, None if it has none; rows are counted over all processes.
    """

    module: nn.Module
    layers: Mapping[str, Compensated]
    inputs: BlockInputs | None
    targets: Tensor | Rows | None
    shard: Shard

    def passes(self, rows: Tensor) -> list[tuple[Tensor, float]]:
        """This process's own of the ``rows``, those that go through the block together, and their share of all."""
        own = self.shard.own(rows)
        if self.inputs is None or not len(own):
            return []
        parts = own.split(max(1, PASS_BYTES // max(1, self.inputs.row_bytes)))
        return [(part, len(part) / len(rows)) for part in parts]

    @property
    def second_dimension(self) -> int:
        """Of the output: a picture's channels, or tokens."""
        assert self.targets is not None
        return int(self.targets[:1].shape[1])

    def loss(self, weights: Mapping[str, Tensor], own: Tensor) -> Tensor:
        """Of rows of this process."""
        assert self.inputs is not None
        assert self.targets is not None
        args, kwargs = self.inputs.take(own)
        named = {f"{name}.weight".lstrip("."): weight for name, weight in weights.items()}
        return F.mse_loss(as_rows(functional_call(self.module, named, args, kwargs)), self.targets[own])


def reconstruct(
    module: nn.Module,
    layers: Mapping[str, Compensated],
    inputs: BlockInputs | None,
    targets: Tensor | Rows | None,
    generator: Generator,
    shard: Shard | None = None,
) -> dict[str, QuantizedWeight]:
    """The integers with the least output error on held-out rows among those visited, the start included.

    ``layers`` by name within the block; ``targets`` (rows, ...), as :func:`as_rows` gives them. Stops early
    after two checks without gain. Of fewer than four rows none can be held out: the start is returned. Where the rows
    are spread over processes, ``shard`` says how, inputs and targets are this one's, None if it has none, and gradients
    and errors are averaged over all.
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
            now = {name: _integers(layers[name], offset.detach()) for name, offset in offsets.items()}
            loss = _held_out_loss(block, now, held_out)
            if loss < least:
                best, least, misses = now, loss, 0
            elif (misses := misses + 1) == PATIENCE:
                break
    return best


def _descend(block: Block, offsets: Mapping[str, Tensor], rows: Tensor, step: float) -> None:
    gradients = [torch.zeros_like(offset) for offset in offsets.values()]
    for part, share in block.passes(rows):
        with torch.enable_grad():
            weights = {name: _straight_through(block.layers[name], offset) for name, offset in offsets.items()}
            of_part = torch.autograd.grad(block.loss(weights, part) * share, list(offsets.values()))
        for gradient, more in zip(gradients, of_part, strict=True):
            gradient += more
    for offset, gradient in zip(offsets.values(), gradients, strict=True):
        offset.detach().sub_(block.shard.ranks.sum(gradient).sign(), alpha=step)


def _straight_through(layer: Compensated, offset: Tensor) -> Tensor:
    """``scale * (clamp(round(w_fp / scale + offset) + zero_point, 0, qmax) - zero_point)``, round' = 1."""
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
    own = sum(float(block.loss(floats, part)) * share for part, share in block.passes(rows))
    return float(block.shard.ranks.sum(torch.tensor(own, dtype=torch.float64)))
