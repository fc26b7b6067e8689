"""Axes of a plot: where they begin and end, and which values get a tick."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

_NICE = (1, 2, 5)


class Scale(Enum):
    """How values are laid out along an axis."""

    LINEAR = auto()
    LOG = auto()
    WHOLE = auto()
    """Linear, with ticks at whole numbers only: steps, bits."""


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis shows, unit included: `latent MSE`, `size (MiB)`."""

    label: str
    scale: Scale = Scale.LINEAR


def round_outward(low: float, high: float, scale: Scale) -> tuple[float, float]:
    """The nearest nice limits that hold `[low, high]`, a tick at each. An empty range is widened first.

    Raises ValueError for a logarithmic axis whose values are not all positive.
    """
    if scale is Scale.LOG:
        if low <= 0:
            raise ValueError(f"a logarithmic axis cannot show {low}; use a linear one or leave the value out")
        low, high = max(v for v in _nice_powers(low / 10, low)), min(v for v in _nice_powers(high, high * 10))
        return (low, high) if low < high else (low / 2, high * 2)
    low, high = _widened(low, high)
    step = tick_step(low, high, scale)
    # A limit that is already nice must stay, though low / step may come out a rounding error off a whole number.
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def ticks(low: float, high: float, scale: Scale) -> list[float]:
    """The nice values within `[low, high]`, ascending: multiples of 1, 2 or 5 times a power of ten.

    A logarithmic axis has a tick at every power of ten (at fewer beyond eight of them), and at 2 and 5 times it where
    the axis covers less than three.
    """
    if scale is Scale.LOG:
        candidates = list(_nice_powers(low, high))
        powers = [value for value in candidates if f"{value:e}".startswith("1.000")]
        if math.log10(high / low) < 3:
            return candidates
        return powers[:: math.ceil(len(powers) / 8)]
    step = tick_step(low, high, scale)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Rounded to the digits that matter, so that 3 * 0.1 is written 0.3.
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def tick_step(low: float, high: float, scale: Scale, *, count: int = 6) -> float:
    """The distance between ticks: 1, 2 or 5 times a power of ten, such that about `count` fit into `[low, high]`.

    Source: Heckbert, "Nice numbers for graph labels", Graphics Gems, 1990, with every step rounded up.
    """
    rough = (high - low) / count
    if rough <= 0:
        return 1.0
    step = min(_nice_powers(rough, rough * 10))
    return max(1.0, step) if scale is Scale.WHOLE else step


def fraction(value: float, low: float, high: float, scale: Scale) -> float:
    """Where `value` lies between `low` (0) and `high` (1) along the axis; the middle of an axis of no length."""
    if scale is Scale.LOG:
        value, low, high = math.log10(value), math.log10(low), math.log10(high)
    return (value - low) / (high - low) if high > low else 0.5


def limits(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _widened(low: float, high: float) -> tuple[float, float]:
    if high > low:
        return low, high
    margin = abs(low) / 10 or 1.0
    return low - margin, high + margin


def _nice_powers(low: float, high: float) -> Iterator[float]:
    """Every 1, 2 or 5 times a power of ten within `[low, high]`, ascending, the ends included despite rounding."""
    for exponent in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1):
        for nice in _NICE:
            value = float(f"{nice}e{exponent}")
            if low * (1 - 1e-9) <= value <= high * (1 + 1e-9):
                yield value
