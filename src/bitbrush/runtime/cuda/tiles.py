"""Choice of a product's tile sizes: estimated from its size, never by trial runs during generation.

The estimate has the form of what a GPU does: programs in rounds, each a fixed part and a loop of steps. Its constants
were fitted to 204 products that an H200 measured (median error 4 %). On the swept products of that record the chosen
tile takes 2.9 % more time than the fastest one on average (``tests/runtime/cuda/test_tiles.py``).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto
from math import ceil


@dataclass(frozen=True)
class Tile:
    """Pixels, filters and columns of a tile, warps of 32 threads, pipelined loads, and registers of a thread."""

    m: int
    n: int
    k: int
    warps: int
    stages: int
    registers: int


@dataclass(frozen=True)
class Gpu:
    """Number of multiprocessors; shared memory in bytes and byte products per clock of each."""

    processors: int
    shared_bytes: int
    products: int


@dataclass(frozen=True)
class Product:
    """Product of pixels and filters, each a sum over ``taps`` of ``channels``; ``weights`` is the number per byte."""

    rows: int
    filters: int
    channels: int
    taps: int = 1
    weights: int = 1

    @property
    def columns(self) -> int:
        """Bytes of a filter's tap."""
        return ceil(self.channels / self.weights)


class Need(Enum):
    """Register demand of a program beside one sum per output."""

    NOTHING = auto()
    RESIDUAL = auto()
    GATE = auto()
    TWO_SUMS = auto()
    UNPACKING = auto()


_WIDE, _TALL = (128, 256, 8), (256, 128, 8)
"""Pixels, filters and warps."""

_HOPPER = 4096
"""Byte products per clock; Hopper's matrix units read shared memory, which leaves registers for the tallest tile."""

_LEAST = 16, 32
"""Pixels and filters of the smallest tile, whether used or not."""

_REGISTERS = 1 << 16
"""Registers of a multiprocessor."""

_PROGRAM_BYTES = 1024
"""Shared memory that the GPU reserves for each program."""

_START = 4200
"""Clocks of a program before its first step and after its last, without those per output."""

_OUTPUTS = {Need.NOTHING: 193, Need.RESIDUAL: 316, Need.GATE: 298, Need.TWO_SUMS: 316, Need.UNPACKING: 316}
"""Clocks of a program per 1,024 outputs; the residual is loaded, and GEGLU computed, after the last step."""

_WAIT, _ALONE = 333, 1.27
"""Clocks of a step, and multiple of its products' clocks, if no other program runs on the multiprocessor."""

_CLOCKS_PER_KIB = 11.6
"""Clocks in which a multiprocessor issues the loads of 1 KiB. Products wait for them instead of running beside them:
Triton does not issue products of bytes asynchronously."""

_FEWEST_STAGES = 2


@dataclass(frozen=True)
class _Tiles:
    """Shapes that fit into registers: pixels, filters, warps and the largest number of registers of a thread.

    Registers are those of compilations for compute capability 9.0, held by ``tests/runtime/cuda/test_compiled.py``.
    ``columns`` and ``stages`` are the most columns at a time and the most pipelined loads.
    """

    shapes: tuple[tuple[int, int, int, int], ...]
    columns: int = 128
    stages: int = 4


_SMALL = ((64, 64, 4, 128), (128, 32, 4, 128), (32, 64, 4, 128), (16, 64, 4, 96), (16, 32, 2, 96))
_TILES = {
    Need.NOTHING: _Tiles(((*_WIDE, 255), (*_TALL, 255), (128, 128, 8, 192), (64, 128, 4, 168), *_SMALL)),
    Need.RESIDUAL: _Tiles(((*_WIDE, 255), (*_TALL, 255), (128, 128, 8, 224), (64, 128, 4, 200), *_SMALL)),
    Need.GATE: _Tiles(((*_TALL, 255), (128, 128, 8, 192), (64, 128, 4, 168), *_SMALL)),
    Need.TWO_SUMS: _Tiles(_SMALL),
    Need.UNPACKING: _Tiles(((*_TALL, 255), (128, 128, 8, 192), (64, 128, 8, 128), _SMALL[0], *_SMALL[2:]), columns=64),
}


def choose_tile(product: Product, gpu: Gpu, need: Need = Need.NOTHING) -> Tile:
    """Selects the tile with the fewest estimated :func:`clocks` among :func:`candidates`."""
    return min(candidates(product, gpu, need), key=lambda tile: clocks(product, tile, gpu, need))


def clocks(product: Product, tile: Tile, gpu: Gpu, need: Need) -> float:
    """Estimates the clocks of all programs of a product.

    A multiprocessor holds :func:`programs_held` at a time, round after round. In a round the matrix units, and after
    them the loads, serve the programs in turn; a program alone also waits for its own results.
    """
    programs = ceil(product.rows / tile.m) * ceil(product.filters / tile.n)
    per_processor = ceil(programs / gpu.processors)
    rounds = ceil(per_processor / programs_held(product, tile, gpu))
    sums = tile.m * tile.n * tile.k * product.weights / gpu.products
    loads = _bytes(product, tile) / 1024 * _CLOCKS_PER_KIB
    step = max(_WAIT + _ALONE * sums, per_processor / rounds * (sums + loads))
    steps = product.taps * ceil(product.columns / tile.k)
    return rounds * (_START + tile.m * tile.n / 1024 * _OUTPUTS[need] + steps * step)


def programs_held(product: Product, tile: Tile, gpu: Gpu) -> int:
    """Counts the programs that the registers and the shared memory of a multiprocessor hold at a time."""
    registers = 32 * tile.warps * 8 * ceil(tile.registers / 8)
    shared = _bytes(product, tile) * tile.stages + _PROGRAM_BYTES
    return max(1, min(_REGISTERS // registers, (gpu.shared_bytes + _PROGRAM_BYTES) // shared))


def candidates(product: Product, gpu: Gpu, need: Need) -> Iterator[Tile]:
    """Generates tiles that no dimension is too small for, largest first."""
    tiles = _TILES[need]
    least = 64 if product.columns > 32 else 32
    k = next((columns for columns in (128, 64) if columns <= tiles.columns and product.columns % columns == 0), least)
    for m, n, warps, registers in tiles.shapes:
        if gpu.products < _HOPPER and (m, n, warps) == _TALL:
            continue
        tile = Tile(m, n, k, warps, tiles.stages, registers)
        stages = min(tiles.stages, gpu.shared_bytes // _bytes(product, tile))
        fits = m < 2 * max(product.rows, _LEAST[0]) and n < 2 * max(product.filters, _LEAST[1])
        if fits and stages >= _FEWEST_STAGES:
            yield replace(tile, stages=stages)


def _bytes(product: Product, tile: Tile) -> int:
    """Returns the bytes that a step loads."""
    return (tile.m * product.weights + tile.n) * tile.k
