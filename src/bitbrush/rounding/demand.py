"""The memory and the arithmetic that learned rounding takes, reckoned from one measured denoiser call."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from bitbrush.network.footprint import Footprint, ModuleUse
from bitbrush.network.held import weight_shape
from bitbrush.rounding.compensation import MIN_POSITIONS, PART_BYTES, POSITIONS_PER_COLUMN, WAITING_BYTES, WHOLE_BYTES
from bitbrush.rounding.reconstruction import BATCH_ROWS, CHECK_EVERY, HELD_OUT, ITERATIONS, PASS_BYTES

FLOAT = 4
COLUMN_COPIES = 2
"""Of what is chosen of a layer's inputs as columns: of either network's."""
CONV_INPUT_COPIES, LINEAR_INPUT_COPIES = 3, 1
"""Of the inputs that these are chosen from: taken from the samples, and a convolution's padded, channels last."""
WEIGHT_COPIES = 7
"""Float copies of a layer's weights: fitted, ordered, wanted and rounded, and what the search of their range takes."""
WEIGHTS_OF_A_DESCENT = 8
"""Float copies of a block's weights in one step: wanted, offset, gradient, and the straight-through round's."""
BACKWARD = 3
"""Denoiser passes that a forward pass with its gradients is worth."""


@dataclass(frozen=True)
class LayerDemand:
    """Of rounding one layer: bytes beyond those of a denoiser call, and floating point operations."""

    bytes: int
    operations: int


def rounding_bytes(
    denoiser: nn.Module,
    blocks: Mapping[str, Sequence[str]],
    footprint: Footprint,
    prompts: int,
    samples: int,
    *,
    room: int = 0,
) -> int:
    """The most memory that rounding the blocks holds beside the full-precision weights and finished integers.

    ``footprint``: of a denoiser call of one prompt; ``prompts``: in one of the recorded calls; ``samples``: in all of
    them. With more of these it grows until there are as many as a layer is rounded by, and until what waits fills the
    ``room`` that it has in memory.
    """
    call = 2 * footprint.most * prompts  # the one that runs, and what was read of others
    most = 0
    for block, layers in blocks.items():
        own = {block: layers}
        waiting = spooled_bytes(own, footprint, samples) + waiting_bytes(denoiser, own)
        uses = [footprint.modules[layer] for layer in layers]
        rounding = [
            layer_demand(denoiser.get_submodule(layer), use, use.rows * samples).bytes
            for layer, use in zip(layers, uses, strict=True)
        ]
        if len(layers) > 1:
            rounding.append(_descent_bytes(denoiser, layers, footprint.modules[block]))
        most = max(most, min(waiting, room) + max(rounding))
    return call + most


def waiting_bytes(denoiser: nn.Module, blocks: Mapping[str, Sequence[str]]) -> int:
    """The largest Gram matrix that waits on the disk; 0 if all are small enough for memory."""
    layers = (denoiser.get_submodule(layer) for layers in blocks.values() for layer in layers)
    matrices = [FLOAT * math.prod(weight_shape(layer)[1:]) ** 2 for layer in layers]
    return max((matrix for matrix in matrices if matrix >= WAITING_BYTES), default=0)


def spooled_bytes(blocks: Mapping[str, Sequence[str]], footprint: Footprint, samples: int) -> int:
    """The most that calls of so many single prompts, suspended in both networks, hold on the disk."""
    most = 0
    for block, layers in blocks.items():
        use = footprint.modules[block]
        inner = [footprint.modules[layer] for layer in layers]
        most = max(most, 2 * use.live + use.inputs + 2 * use.outputs, *(2 * (own.live + own.inputs) for own in inner))
    return samples * most


def rounding_passes(blocks: Mapping[str, Sequence[str]], footprint: Footprint, samples: int) -> float:
    """How many denoiser calls of one prompt learned rounding is worth, compensation's matrices apart.

    Three of every sample (the full-precision network once, the quantized one before and after a block is rounded), and
    the rows that the blocks of several layers are learned on.
    """
    rows = max(use.rows for use in footprint.modules.values())
    learned = BACKWARD * ITERATIONS * BATCH_ROWS + (ITERATIONS // CHECK_EVERY + 1) * HELD_OUT
    return 3 * samples + learned / rows


def layer_demand(layer: nn.Module, use: ModuleUse, rows: int) -> LayerDemand:
    """Of :func:`round_with_compensation` for ``rows`` of input, all that are to be chosen from.

    Operations: the products of all positions, the fit, the spread of the errors, and factors, which count threefold:
    they run at a third of the products' pace.
    """
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    channels, *kernel = weight_shape(layer)
    columns = math.prod(kernel)
    wanted = max(MIN_POSITIONS, POSITIONS_PER_COLUMN * columns)
    taken = min(rows, -(-2 * wanted // use.positions)) * use.positions
    used = min(taken, wanted)
    row = FLOAT * columns * use.positions
    together = taken // use.positions
    if row * together > WHOLE_BYTES:
        together = max(1, PART_BYTES // row)
    copies = CONV_INPUT_COPIES if isinstance(layer, nn.Conv2d) else LINEAR_INPUT_COPIES
    seen = together * (COLUMN_COPIES * row * used // taken + copies * use.inputs // use.rows)
    matrix = FLOAT * columns**2
    gram = 0 if matrix >= WAITING_BYTES else matrix
    most = gram + matrix + FLOAT * columns * WEIGHT_COPIES * channels + seen
    narrow = min(4 * channels, 2 * columns)
    operations = columns * (used * (columns + narrow) + columns * 3 * (channels + columns))
    return LayerDemand(most, operations)


def _descent_bytes(denoiser: nn.Module, layers: Sequence[str], use: ModuleUse) -> int:
    weights = [math.prod(weight_shape(denoiser.get_submodule(layer))) for layer in layers]
    together = max(1, PASS_BYTES * use.rows // max(1, use.inputs))
    learned = BACKWARD * use.inner * min(BATCH_ROWS, together)
    checked = (use.inner + use.inputs + use.outputs) * min(HELD_OUT, together)
    return FLOAT * WEIGHTS_OF_A_DESCENT * sum(weights) + max(learned, checked) // use.rows
