"""How the work of a product is cut into tiles: reckoned from its size, never tried out while pictures are made."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from math import ceil


@dataclass(frozen=True)
class Tile:
    """Pixels, filters and columns of a tile; threads in warps of 32; how many loads are under way at a time."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Gpu:
    """Multiprocessors; of one, bytes of shared memory and how many pairs of bytes it multiplies in a clock."""

    processors: int
    shared_bytes: int
    products: int


@dataclass(frozen=True)
class Product:
    """Pixels by filters, each the sum over ``taps`` of ``channels``; ``weights``: in a byte."""

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
    """What a program holds in registers beside one sum for each output."""

    NOTHING = auto()
    GATE = auto()
    TWO_SUMS = auto()
    UNPACKING = auto()


_SMALL = ((64, 64, 4), (128, 32, 4), (32, 64, 4), (16, 64, 4), (16, 32, 2))
_MIDDLE = ((128, 128, 8), (64, 128, 4), *_SMALL)
_WIDE, _TALL = (128, 256, 8), (256, 128, 8)
"""Pixels, filters, warps."""

_HOPPER = 4096
"""Products in a clock. Its matrix units read shared memory, which leaves registers for the tallest tile."""

_LEAST = 16, 32
"""Pixels and filters that every tile has, if it uses them or not."""

_CACHE_BYTES = 30
"""That a multiprocessor has of the L2 cache in a clock while all read: some 7 TB/s on an H100."""

_LATENCY = 1500
"""Clocks of a program before its first sum and after its last."""

_FEWEST_STAGES = 2


@dataclass(frozen=True)
class _Tiles:
    """Shapes whose programs don't run out of registers, the most columns at a time, the most loads under way.

    Read from what compiles for compute capabilities 8.0 and 9.0.
    """

    shapes: tuple[tuple[int, int, int], ...]
    columns: int = 128
    stages: int = 4


_TILES = {
    Need.NOTHING: _Tiles((_WIDE, _TALL, *_MIDDLE)),
    Need.GATE: _Tiles((_TALL, *_MIDDLE)),
    Need.TWO_SUMS: _Tiles(_SMALL),
    Need.UNPACKING: _Tiles((_TALL, (128, 128, 8), (64, 128, 8), _SMALL[0], *_SMALL[2:]), columns=64),
}


def choose_tile(product: Product, gpu: Gpu, need: Need = Need.NOTHING) -> Tile:
    """The tile of the fewest :func:`clocks`, of those that no dimension is too small for."""
    return min(candidates(product, gpu, need), key=lambda tile: clocks(product, tile, gpu))


def clocks(product: Product, tile: Tile, gpu: Gpu) -> float:
    """Of all tiles: each multiprocessor computes its share one after another.

    A step takes as long as its sums, or as its bytes take from the cache, which all share: on a GPU that multiplies
    as fast as Hopper it is the bytes, so that large tiles win even where some multiprocessors are left without.
    """
    programs = ceil(product.rows / tile.m) * ceil(product.filters / tile.n)
    busy = min(programs, gpu.processors) / gpu.processors
    sums = tile.m * tile.n * tile.k * product.weights / gpu.products
    loads = _bytes(product, tile.m, tile.n, tile.k) * busy / _CACHE_BYTES
    steps = product.taps * ceil(product.columns / tile.k)
    return ceil(programs / gpu.processors) * (steps * max(sums, loads) + _LATENCY)


def candidates(product: Product, gpu: Gpu, need: Need) -> Iterator[Tile]:
    """The larger first."""
    tiles = _TILES[need]
    least = 64 if product.columns > 32 else 32
    k = next((one for one in (128, 64) if one <= tiles.columns and product.columns % one == 0), least)
    for m, n, warps in tiles.shapes:
        stages = gpu.shared_bytes // _bytes(product, m, n, k)
        if gpu.products < _HOPPER and (m, n, warps) == _TALL:
            continue
        fits = m < 2 * max(product.rows, _LEAST[0]) and n < 2 * max(product.filters, _LEAST[1])
        if fits and stages >= _FEWEST_STAGES:
            yield Tile(m, n, k, warps, min(tiles.stages, stages))


def _bytes(product: Product, m: int, n: int, k: int) -> int:
    """That a step loads."""
    return (m * product.weights + n) * k
