"""AdaRound (arXiv 2004.10568) with BRECQ's block reconstruction (arXiv 2102.05426), as PCR's authors use it.

``w_hat = s (clamp(floor(w / s) + h(alpha) + z, 0, 2^b - 1) - z)`` with ``h = clamp(1.2 sigmoid(alpha) - 0.1, 0, 1)``.
The loss is a block's squared error, summed over its output's second dimension, plus
``lambda sum(1 - |2 h - 1|^beta)``. The second term drives every ``h`` to 0 or 1 as ``beta`` falls. Iterations, learning
rate and constants are those of PCR (arXiv 2311.06322) and its published code. This module serves reproduction:
``rounding/reconstruction.py`` is better, and some thirty times as fast.
"""

from collections.abc import Mapping

import torch
from torch import Generator, Tensor, nn

from bitbrush.numerics.limits import WeightRange
from bitbrush.numerics.weights import QuantizedWeight, round_to_nearest, weight_qparams
from bitbrush.rounding.blocks import BlockInputs, Rows
from bitbrush.rounding.compensation import Compensated
from bitbrush.rounding.reconstruction import Block
from bitbrush.rounding.shards import Shard
from bitbrush.session.offload import IN_MEMORY, Offload

ITERATIONS = 2000
BATCH_ROWS = 32
RATE = 1e-3
WARM_UP = 0.2
"""Fraction of the iterations without the regularizer of ``h``."""
FIRST_BETA, LAST_BETA = 20.0, 2.0
OF_BLOCK, OF_LAYER = 0.01, 0.001
"""``lambda`` of a block, and that of a layer outside all blocks."""
LOW, HIGH = -0.1, 1.1


def round_alone(
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
    """Rounds a layer to nearest and keeps its bias, the start of :func:`adaround`; ignores its inputs."""
    weight = layer.weight.detach().float()
    bias = None if layer.bias is None else layer.bias.detach().float().clone()
    return Compensated(round_to_nearest(weight, weight_qparams(weight, bits, estimator)), weight, bias)


def adaround(
    module: nn.Module,
    layers: Mapping[str, Compensated],
    inputs: BlockInputs | None,
    targets: Tensor | Rows | None,
    generator: Generator,
    shard: Shard | None = None,
) -> dict[str, QuantizedWeight]:
    """Learns the rounding of a block's layers with AdaRound.

    Args:
        module: Block in the quantized network.
        layers: Start of the rounding of each layer, by its name within the block.
        inputs: Quantized inputs of this process; None if it has none.
        targets: Full-precision outputs of this process, (rows, ...); None if it has none.
        generator: Generator that draws batches.
        shard: Distribution of the rows over processes; None if all are in this one.

    Returns:
        Integers after the last iteration, by layer name.
    """
    block = Block(module, layers, inputs, targets, shard or Shard.whole(inputs.rows if inputs else 0))
    alphas = {name: _start(layer).requires_grad_() for name, layer in layers.items()}
    adam = torch.optim.Adam(alphas.values(), lr=RATE)
    strength = OF_LAYER if len(layers) == 1 else OF_BLOCK
    for iteration in range(ITERATIONS):
        rows = torch.randint(block.shard.rows, (BATCH_ROWS,), generator=generator)
        _set_gradients(block, alphas, rows, strength, _beta(iteration))
        adam.step()
    return {name: _integers(layers[name], alpha.detach()) for name, alpha in alphas.items()}


def _beta(iteration: int) -> float | None:
    """Returns the exponent of the regularizer, None during warm-up."""
    progress = (iteration / ITERATIONS - WARM_UP) / (1 - WARM_UP)
    return None if progress < 0 else LAST_BETA + (FIRST_BETA - LAST_BETA) * (1 - progress)


def _set_gradients(
    block: Block, alphas: Mapping[str, Tensor], rows: Tensor, strength: float, beta: float | None
) -> None:
    gradients = [torch.zeros_like(alpha) for alpha in alphas.values()]
    for part, share in block.passes(rows):
        with torch.enable_grad():
            weights = {name: _soft(block.layers[name], alpha) for name, alpha in alphas.items()}
            loss = block.loss(weights, part) * block.second_dimension * share
            of_part = torch.autograd.grad(loss, list(alphas.values()), materialize_grads=True)
        for gradient, more in zip(gradients, of_part, strict=True):
            gradient += more
    for alpha, gradient in zip(alphas.values(), gradients, strict=True):
        alpha.grad = block.shard.ranks.sum(gradient)
        if beta is not None:
            with torch.enable_grad():
                undecided = (1 - (2 * _h(alpha) - 1).abs().pow(beta)).sum()
                alpha.grad += strength * torch.autograd.grad(undecided, alpha)[0]


def _h(alpha: Tensor) -> Tensor:
    return (alpha.sigmoid() * (HIGH - LOW) + LOW).clamp(0, 1)


def _start(layer: Compensated) -> Tensor:
    """Returns the ``alpha`` for which ``h`` is the fraction that the floor removes."""
    scale, _ = layer.weight.qparams.per_channel(layer.w_fp)
    rest = layer.w_fp / scale - (layer.w_fp / scale).floor()
    return torch.logit((rest - LOW) / (HIGH - LOW))


def _soft(layer: Compensated, alpha: Tensor) -> Tensor:
    qparams = layer.weight.qparams
    scale, zero_point = qparams.per_channel(layer.w_fp)
    return scale * (((layer.w_fp / scale).floor() + _h(alpha) + zero_point).clamp(0, qparams.qmax) - zero_point)


def _integers(layer: Compensated, alpha: Tensor) -> QuantizedWeight:
    qparams = layer.weight.qparams
    scale, zero_point = qparams.per_channel(layer.w_fp)
    up = (layer.w_fp / scale).floor() + (alpha >= 0)
    return QuantizedWeight((up + zero_point).clamp(0, qparams.qmax).byte(), qparams)
