"""The figures of `plans`: of every cell medians and means over the pictures, and what recalibrating would change."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.experiments.cell_store import FailedCell
from bitbrush.bench.experiments.plans.cells import Fidelity, PlanCell
from bitbrush.bench.experiments.plans.plan_list import Plan
from bitbrush.bench.metrics.counts import FEWEST_DECIDING
from bitbrush.bench.metrics.interval import Interval, bootstrap_mean, bootstrap_ratio, median_interval

TOLERATED = 1.3
"""The ratio of errors up to which a foreign plan counts as kept; above it recalibrating is advised."""


class Standing(StrEnum):
    """Whether a plan keeps the error within what is tolerated, as far as the ratio's interval tells."""

    KEPT = "kept"
    LOST = "lost"
    OPEN = "open"


@dataclass(frozen=True)
class Spread:
    """``median`` with its interval, whose ends are infinite below 6 pictures, and ``mean`` with its own."""

    median: Interval
    mean: Interval


@dataclass(frozen=True)
class FidelityFigures:
    latent_mse: Spread
    psnr: Spread


@dataclass(frozen=True)
class Ratios:
    """The artifact's latent MSE as a multiple of the recalibrated one's, over the same pictures."""

    of_medians: Interval
    of_means: Interval


@dataclass(frozen=True)
class CellFigures:
    """``recalibrated`` and ``ratios`` are None where nothing was recalibrated, all three where ``problem`` says why."""

    planned: Plan
    is_calibrated: bool
    artifact: FidelityFigures | None = None
    recalibrated: FidelityFigures | None = None
    ratios: Ratios | None = None
    problem: str | None = None


def cell_figures(planned: Plan, cell: PlanCell | FailedCell, *, calibrated: bool) -> CellFigures:
    """Computes the figures of a plan's cell; ``calibrated``: the artifact is calibrated for this plan."""
    if isinstance(cell, FailedCell):
        return CellFigures(planned, calibrated, problem=cell.problem)
    again = cell.recalibrated
    return CellFigures(
        planned,
        calibrated,
        artifact=_figures(cell.artifact),
        recalibrated=None if again is None else _figures(again),
        ratios=None if again is None else _ratios(cell.artifact.latent_mse, again.latent_mse),
    )


def standing(ratio: Interval) -> Standing:
    if ratio.n >= FEWEST_DECIDING and ratio.high <= TOLERATED:
        return Standing.KEPT
    return Standing.LOST if ratio.n >= FEWEST_DECIDING and ratio.low > TOLERATED else Standing.OPEN


def headline(figures: Sequence[CellFigures]) -> str:
    """One sentence on the plans that the artifact was not calibrated for."""
    ratios = [one.ratios.of_medians for one in figures if one.ratios]
    if ratios:
        return _standings(ratios)
    errors = [one.artifact.latent_mse.median.mean for one in figures if one.artifact]
    if not errors:
        return "No plan could be measured"
    return f"The median latent error lies between {min(errors):.2g} and {max(errors):.2g} over {len(errors)} plans"


def _standings(ratios: Sequence[Interval]) -> str:
    count, images = Counter(map(standing, ratios)), ratios[0].n
    kept, lost, undecided = (count[one] for one in (Standing.KEPT, Standing.LOST, Standing.OPEN))
    within = f"the latent error within {TOLERATED:g} times that of recalibrating"
    if undecided == len(ratios):
        return f"{images} images do not tell which of {undecided} other plans keep {within}"
    parts = [f"{kept} of {len(ratios)} other plans keep {within}"]
    if lost:
        most = max(ratio.mean for ratio in ratios if standing(ratio) is Standing.LOST)
        parts.append(f"{lost} do not (up to {most:.2f} times)")
    if undecided:
        parts.append(f"{images} images do not tell of {undecided}")
    return "; ".join(parts)


def _figures(one: Fidelity) -> FidelityFigures:
    return FidelityFigures(_spread(one.latent_mse), _spread(one.psnr))


def _spread(values: NDArray[np.float64]) -> Spread:
    return Spread(Interval(*median_interval(values), values.size), bootstrap_mean(values))


def _ratios(own: NDArray[np.float64], again: NDArray[np.float64]) -> Ratios | None:
    """None where a recalibrated picture has no error at all, and a ratio no meaning."""
    if again.min() <= 0:
        return None
    return Ratios(bootstrap_ratio(again, own, statistic=np.median), bootstrap_ratio(again, own))
