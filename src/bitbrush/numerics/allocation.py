"""Bits for many things under a budget of average bits: a multiple-choice knapsack, solved to a stated bound."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_SLACK = 1e-9
"""Of the budget: what sums of floating point may lack."""


@dataclass(frozen=True)
class Allocation:
    """``bits`` (items,) int64 and the ``distortion`` they make; no choice within the budget makes less than ``bound``.

    ``average``: bits by size, at most the budget.
    """

    bits: Tensor
    distortion: float
    bound: float
    average: float


class _Rise(NamedTuple):
    """A step up the convex hull of one item: what each unit of its ``cost`` takes off the distortion."""

    gain: float
    item: int
    choice: int
    cost: float


def allocate(distortion: Tensor, choices: Sequence[int], sizes: Tensor, budget: float) -> Allocation:
    """Bits for each item with the least total distortion, ``sum(size * bits) <= budget * sum(size)``.

    ``distortion`` (items, choices): of each item with each of the ascending ``choices`` of bits; ``sizes`` (items,)
    positive. Every item starts with the fewest bits and climbs the lower convex hull of its (bits, distortion); the
    climbs of all items are made by gain per cost until one does not fit, then whatever later one fits. The first are
    the optimum of the problem's linear relaxation, so its value is a bound (Sinha and Zoltners, Operations Research
    27(3), 1979), and the result is above it by less than one climb of one item.

    Raises ValueError if the budget is below the fewest bits, or a distortion is not finite.
    """
    if budget < choices[0]:
        raise ValueError(f"the budget is {budget:g} bits on average; the least that can be given is {choices[0]}")
    if not bool(torch.isfinite(distortion).all()):
        raise ValueError("a distortion is NaN or infinite: a layer overflowed where it was measured")
    rows, size = distortion.double().tolist(), sizes.double().tolist()
    rises = sorted(
        (rise for item, row in enumerate(rows) for rise in _rises(item, row, choices, size[item])),
        key=lambda rise: -rise.gain,
    )
    left = (budget - choices[0]) * sum(size) + _SLACK * budget * sum(size)
    chosen, stopped = [0] * len(rows), [False] * len(rows)
    total = sum(row[0] for row in rows)
    bound: float | None = None
    for rise in rises:
        fits = rise.cost <= left
        if not fits and bound is None:
            bound = total - rise.gain * left
        if fits and not stopped[rise.item]:
            chosen[rise.item] = rise.choice
            total -= rise.gain * rise.cost
            left -= rise.cost
        else:
            stopped[rise.item] = True  # what comes after it on this hull stands on it
    bits = torch.tensor([choices[choice] for choice in chosen])
    total = sum(row[choice] for row, choice in zip(rows, chosen, strict=True))
    average = float((bits * sizes.double()).sum() / sizes.double().sum())
    return Allocation(bits, total, total if bound is None else min(bound, total), average)


def _rises(item: int, row: Sequence[float], choices: Sequence[int], size: float) -> list[_Rise]:
    """The climbs from the fewest bits up the lower convex hull, each of less gain than the one before."""
    rises: list[_Rise] = []
    at = 0
    while at < len(choices) - 1:
        slopes = [(row[at] - row[to]) / ((choices[to] - choices[at]) * size) for to in range(at + 1, len(choices))]
        best = max(range(len(slopes)), key=lambda index: (slopes[index], index))
        if slopes[best] <= 0:
            break
        to = at + 1 + best
        rises.append(_Rise(slopes[best], item, to, (choices[to] - choices[at]) * size))
        at = to
    return rises
