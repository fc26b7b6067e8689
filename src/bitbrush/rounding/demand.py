"""The memory and the arithmetic that learned rounding takes, reckoned from one measured denoiser call."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from bitbrush.network.footprint import Footprint, ModuleUse
from bitbrush.network.held import weight_shape
from bitbrush.rounding.compensation import MIN_POSITIONS, POSITIONS_PER_COLUMN
from bitbrush.rounding.reconstruction import BATCH_ROWS, CHECK_EVERY, HELD_OUT, ITERATIONS

FLOAT = 4
MATRICES = 6
"""Square matrices of a layer's inputs that compensation holds at once: Gram, damped, inverse, factor, two more."""
WEIGHTS_OF_A_DESCENT = 8
"""Float copies of a block's weights in one step: wanted, offset, gradient, and the straight-through round's."""
BACKWARD = 3
"""Denoiser passes that a forward pass with its gradients is worth."""


@dataclass(frozen=True)
class LayerDemand:
    """Of rounding one layer: bytes beyond the suspended calls, and floating point operations."""

    bytes: int
    operations: int


def rounding_bytes(denoiser: nn.Module, blocks: Mapping[str, Sequence[str]], footprint: Footprint, samples: int) -> int:
    """The most that rounding the blocks holds beside two denoisers, the samples themselves and finished integers.

    ``footprint``: of a denoiser call of one prompt; ``samples``: as many such calls are suspended, in both networks.
    """
    most = 0
    for block, layers in blocks.items():
        use = footprint.modules[block]
        suspended = 2 * samples * use.live
        learned = samples * (use.inputs + 2 * use.outputs) + _descent_bytes(denoiser, layers, use)
        most = max(most, suspended + (learned if len(layers) > 1 else 0))
        for layer in layers:
            own = footprint.modules[layer]
            demand = layer_demand(denoiser.get_submodule(layer), own, samples * own.rows)
            most = max(most, 2 * samples * (own.live + own.inputs) + demand.bytes)
    return most


def rounding_passes(blocks: Mapping[str, Sequence[str]], footprint: Footprint, samples: int) -> float:
    """How many denoiser calls of one prompt learned rounding is worth, compensation's matrices apart.

    Three of every sample (the full-precision network once, the quantized one before and after a block is rounded), and
    the rows that the blocks of several layers are learned on.
    """
    rows = max(use.rows for use in footprint.modules.values())
    learned = BACKWARD * ITERATIONS * BATCH_ROWS + (ITERATIONS // CHECK_EVERY + 1) * HELD_OUT
    return 3 * samples + learned / rows


def layer_demand(layer: nn.Module, use: ModuleUse, rows: int) -> LayerDemand:
    """Of :func:`round_with_compensation` for ``rows`` of input.

    Operations: two products of all positions, two fits, two inverses and a factor, the spread of the errors.
    """
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    channels, *kernel = weight_shape(layer)
    columns = math.prod(kernel)
    wanted = max(MIN_POSITIONS, POSITIONS_PER_COLUMN * columns)
    taken = min(rows, -(-2 * wanted // use.positions)) * use.positions
    used = min(taken, wanted)
    unfolded = (2 if isinstance(layer, nn.Conv2d) else 1) * taken
    sampling, solving = 2 * used + unfolded, 3 * used
    most = FLOAT * columns * max(sampling, solving + MATRICES * columns)
    operations = columns**2 * (4 * used + 6 * channels + 5 * columns)
    return LayerDemand(most, operations)


def _descent_bytes(denoiser: nn.Module, layers: Sequence[str], use: ModuleUse) -> int:
    weights = [math.prod(weight_shape(denoiser.get_submodule(layer))) for layer in layers]
    return FLOAT * WEIGHTS_OF_A_DESCENT * sum(weights) + use.inner * HELD_OUT // use.rows
