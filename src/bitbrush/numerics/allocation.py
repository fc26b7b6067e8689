"""Allocation of bits to items under a budget of average bits: a multiple-choice knapsack, solved to a stated bound."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_SLACK = 1e-9
"""Fraction of the budget that floating-point sums may fall short by."""


@dataclass(frozen=True)
class Allocation:
    """Chosen bits of all items, with their total distortion and a lower bound on it.

    ``bits`` has shape (items,) and dtype int64. No choice within the budget has a distortion below ``bound``.
    ``average`` is the size-weighted mean of the bits, at most the budget.
    """

    bits: Tensor
    distortion: float
    bound: float
    average: float


class _Rise(NamedTuple):
    """One step up the convex hull of one item; ``gain`` is the distortion that each unit of its ``cost`` removes."""

    gain: float
    item: int
    choice: int
    cost: float


def allocate(distortion: Tensor, choices: Sequence[int], sizes: Tensor, budget: float) -> Allocation:
    """Chooses bits for each item with the least total distortion, ``sum(size * bits) <= budget * sum(size)``.

    Every item starts with the fewest bits and climbs the lower convex hull of its (bits, distortion) points. The climbs
    of all items are made in order of gain per cost until one does not fit. After that, any later climb that fits is
    made.

    The first climbs are the optimum of the linear relaxation, so its value is a bound (Sinha and Zoltners, Operations
    Research 27(3), 1979). The result exceeds the bound by less than one climb of one item.

    Args:
        distortion: Shape (items, choices): the distortion of each item with each choice.
        choices: Bits to choose from, ascending.
        sizes: Shape (items,), positive: the weight of each item in the average.
        budget: Largest average of bits.

    Raises:
        ValueError: The budget is below the fewest bits, or a distortion is not finite.
    """
    if budget < choices[0]:
        raise ValueError(f"the budget is {budget:g} bits on average; the smallest choice is {choices[0]}")
    if not bool(torch.isfinite(distortion).all()):
        raise ValueError("a distortion is NaN or infinite: a layer overflowed where it was measured")
    rows, size = distortion.double().tolist(), sizes.double().tolist()
    rises = sorted(
        (rise for item, row in enumerate(rows) for rise in _rises(item, row, choices, size[item])),
        key=lambda rise: -rise.gain,
    )
    remaining = (budget - choices[0]) * sum(size) + _SLACK * budget * sum(size)
    selection, stopped = [0] * len(rows), [False] * len(rows)
    total = sum(row[0] for row in rows)
    bound: float | None = None
    for rise in rises:
        fits = rise.cost <= remaining
        if not fits and bound is None:
            bound = total - rise.gain * remaining
        if fits and not stopped[rise.item]:
            selection[rise.item] = rise.choice
            total -= rise.gain * rise.cost
            remaining -= rise.cost
        else:
            stopped[rise.item] = True  # later climbs of this hull presuppose this one
    bits = torch.tensor([choices[choice] for choice in selection])
    total = sum(row[choice] for row, choice in zip(rows, selection, strict=True))
    average = float((bits * sizes.double()).sum() / sizes.double().sum())
    return Allocation(bits, total, total if bound is None else min(bound, total), average)


def _rises(item: int, row: Sequence[float], choices: Sequence[int], size: float) -> list[_Rise]:
    """Lists the climbs from the fewest bits up the lower convex hull, in order of decreasing gain."""
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
