"""Choice of a product's tile sizes: estimated from its size, never by trial runs during generation."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from math import ceil


@dataclass(frozen=True)
class Tile:
    """Pixels, filters and columns of a tile, warps of 32 threads, and number of pipelined loads."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


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
    GATE = auto()
    TWO_SUMS = auto()
    UNPACKING = auto()


_SMALL = ((64, 64, 4), (128, 32, 4), (32, 64, 4), (16, 64, 4), (16, 32, 2))
_MIDDLE = ((128, 128, 8), (64, 128, 4), *_SMALL)
_WIDE, _TALL = (128, 256, 8), (256, 128, 8)
"""Pixels, filters and warps."""

_HOPPER = 4096
"""Byte products per clock; Hopper's matrix units read shared memory, which leaves registers for the tallest tile."""

_LEAST = 16, 32
"""Pixels and filters of the smallest tile, whether used or not."""

_CACHE_BYTES = 30
"""L2 cache bandwidth of a multiprocessor in bytes per clock under full load: some 7 TB/s on an H100."""

_LATENCY = 1500
"""Clocks of a program before its first sum and after its last."""

_FEWEST_STAGES = 2


@dataclass(frozen=True)
class _Tiles:
    """Shapes that fit into registers, most columns at a time and most pipelined loads.

    Values are read from compilations for compute capabilities 8.0 and 9.0.
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
    """Selects the tile with the fewest estimated :func:`clocks` among :func:`candidates`."""
    return min(candidates(product, gpu, need), key=lambda tile: clocks(product, tile, gpu))


def clocks(product: Product, tile: Tile, gpu: Gpu) -> float:
    """Estimates the clocks of all tiles, where each multiprocessor computes its tiles one after another.

    A step takes as long as its sums, or as its bytes take from the cache, which all multiprocessors share. On a GPU
    that multiplies as fast as Hopper the bytes dominate. Then large tiles win even if some multiprocessors are idle.
    """
    programs = ceil(product.rows / tile.m) * ceil(product.filters / tile.n)
    busy = min(programs, gpu.processors) / gpu.processors
    sums = tile.m * tile.n * tile.k * product.weights / gpu.products
    loads = _bytes(product, tile.m, tile.n, tile.k) * busy / _CACHE_BYTES
    steps = product.taps * ceil(product.columns / tile.k)
    return ceil(programs / gpu.processors) * (steps * max(sums, loads) + _LATENCY)


def candidates(product: Product, gpu: Gpu, need: Need) -> Iterator[Tile]:
    """Generates tiles that no dimension is too small for, largest first."""
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
    """Bytes that a step loads."""
    return (m * product.weights + n) * k
