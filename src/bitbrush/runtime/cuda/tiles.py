"""How the work of a product is cut into tiles: chosen by its size, never by trying it out while pictures are made."""

from dataclasses import dataclass
from enum import Enum, auto


@dataclass(frozen=True)
class Tile:
    """Pixels, filters and channels of a tile; threads in warps of 32; how many loads are under way at a time."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Card:
    """What decides: multiprocessors, and bytes of shared memory that a program may have."""

    processors: int
    shared_bytes: int


class Need(Enum):
    """What a program holds in registers beside one sum for each output."""

    NOTHING = auto()
    RESIDUAL = auto()
    TWO_SUMS = auto()
    UNPACKING = auto()


_SHAPES = ((128, 256, 8), (128, 128, 8), (64, 128, 4), (64, 64, 4), (128, 32, 4), (32, 64, 4), (16, 64, 4), (16, 32, 2))
"""Pixels, filters, warps; the first are the fastest for each byte they read."""

_LEAST = 16, 32
"""Pixels and filters that every tile has, if it uses them or not."""


@dataclass(frozen=True)
class _Room:
    """Shapes whose programs don't run out of registers, the most channels at a time, the most loads under way.

    Read from what compiles for compute capabilities 8.0 and 9.0.
    """

    shapes: tuple[tuple[int, int, int], ...]
    channels: int = 128
    stages: int = 4


_ROOM = {
    Need.NOTHING: _Room(_SHAPES),
    Need.RESIDUAL: _Room(_SHAPES[1:]),
    Need.TWO_SUMS: _Room(_SHAPES[3:]),
    Need.UNPACKING: _Room(((128, 64, 8), *_SHAPES[5:]), channels=64, stages=3),
}
_FEWEST_STAGES = 2


def choose_tile(rows: int, filters: int, channels: int, card: Card, need: Need = Need.NOTHING) -> Tile:
    """The largest shape that no dimension is too small for and that leaves no multiprocessor without work.

    If none does, the smallest that fits: more programs beat better reuse while processors idle.
    """
    room = _ROOM[need]
    k = next((one for one in (128, 64) if one <= room.channels and channels % one == 0), 64 if channels > 32 else 32)
    fitting = [
        shape
        for shape in room.shapes
        if shape[0] < 2 * max(rows, _LEAST[0])
        and shape[1] < 2 * max(filters, _LEAST[1])
        and _stages(shape, k, card) >= _FEWEST_STAGES
    ]
    busy = (shape for shape in fitting if -(-rows // shape[0]) * -(-filters // shape[1]) >= card.processors)
    m, n, warps = shape = next(busy, fitting[-1])
    return Tile(m, n, k, warps, min(room.stages, max(_FEWEST_STAGES, _stages(shape, k, card))))


def _stages(shape: tuple[int, int, int], k: int, card: Card) -> int:
    return card.shared_bytes // ((shape[0] + shape[1]) * k)
