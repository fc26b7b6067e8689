"""Figures of `plans`: medians and means over images for every plan, and what recalibrating would change."""

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
from bitbrush.bench.metrics.interval import Interval, bootstrap_mean, bootstrap_ratio, median_of

TOLERATED = 1.3
"""Ratio of errors up to which another plan counts as kept; above it, recalibrating is advised."""


class Standing(StrEnum):
    """Whether a plan keeps the error within the tolerated ratio, as far as the ratio's interval tells."""

    KEPT = "kept"
    LOST = "lost"
    OPEN = "open"


@dataclass(frozen=True)
class Spread:
    """Median, whose interval is infinite below 6 images, and mean."""

    median: Interval
    mean: Interval


@dataclass(frozen=True)
class FidelityFigures:
    """Figures of a pipeline's closeness to full precision."""

    latent_mse: Spread
    psnr: Spread


@dataclass(frozen=True)
class Ratios:
    """Latent MSE of the artifact as a multiple of the recalibrated one's, over the same images."""

    of_medians: Interval
    of_means: Interval


@dataclass(frozen=True)
class CellFigures:
    """Figures of one plan.

    Args:
        planned: The plan.
        is_calibrated: Whether the artifact is calibrated for this plan.
        artifact: Figures of the artifact; None where it could not be measured.
        recalibrated: Figures of the recalibrated artifact; None where nothing was recalibrated.
        ratios: Ratios of their errors; None likewise.
        problem: Why the plan could not be measured.
    """

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
    recalibrated = cell.recalibrated
    return CellFigures(
        planned,
        calibrated,
        artifact=_figures(cell.artifact),
        recalibrated=None if recalibrated is None else _figures(recalibrated),
        ratios=None if recalibrated is None else _ratios(cell.artifact.latent_mse, recalibrated.latent_mse),
    )


def standing(ratio: Interval) -> Standing:
    """Judges a ratio of errors by its interval; fewer than 6 images leave it open."""
    if ratio.n >= FEWEST_DECIDING and ratio.high <= TOLERATED:
        return Standing.KEPT
    return Standing.LOST if ratio.n >= FEWEST_DECIDING and ratio.low > TOLERATED else Standing.OPEN


def headline(figures: Sequence[CellFigures]) -> str:
    """Sums up the plans that the artifact was not calibrated for in a sentence."""
    ratios = [plan.ratios.of_medians for plan in figures if plan.ratios]
    if ratios:
        return _standings(ratios)
    errors = [plan.artifact.latent_mse.median.mean for plan in figures if plan.artifact]
    if not errors:
        return "No plan could be measured"
    return f"The median latent error lies between {min(errors):.2g} and {max(errors):.2g} over {len(errors)} plans"


def _standings(ratios: Sequence[Interval]) -> str:
    count, images = Counter(map(standing, ratios)), ratios[0].n
    kept, lost, undecided = (count[group] for group in (Standing.KEPT, Standing.LOST, Standing.OPEN))
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


def _figures(fidelity: Fidelity) -> FidelityFigures:
    return FidelityFigures(_spread(fidelity.latent_mse), _spread(fidelity.psnr))


def _spread(values: NDArray[np.float64]) -> Spread:
    return Spread(median_of(values), bootstrap_mean(values))


def _ratios(errors: NDArray[np.float64], recalibrated: NDArray[np.float64]) -> Ratios | None:
    """Computes the ratios; None where a recalibrated image has no error, so that a ratio has no meaning."""
    if recalibrated.min() <= 0:
        return None
    return Ratios(
        of_medians=bootstrap_ratio(recalibrated, errors, statistic=np.median),
        of_means=bootstrap_ratio(recalibrated, errors),
    )
