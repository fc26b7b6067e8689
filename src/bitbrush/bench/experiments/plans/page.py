"""``report.html`` of `plans`: a table coloured by what foreign plans cost, all figures, and the worst pairs."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bitbrush.bench.experiments.bench.report import SHOWN, WIDEST, picture_uri
from bitbrush.bench.experiments.cell_store import FailedCell
from bitbrush.bench.experiments.plans.cells import PlanCell
from bitbrush.bench.experiments.plans.figures import (
    TOLERATED,
    CellFigures,
    Standing,
    headline,
    standing,
)
from bitbrush.bench.metrics.interval import Interval
from bitbrush.bench.metrics.paired import LATENT_MSE, PSNR
from bitbrush.bench.pages.number_format import format_interval, format_number
from bitbrush.bench.pages.templating import environment

PALE, DEEP = 10, 50
"""Percent of full colour that a cell has, so that what is written on it stays readable."""
FARTHEST = 2.0
"""The ratio of errors at which a cell is as deep as it gets."""


@dataclass(frozen=True)
class _HeatCell:
    """``tone``: the colour's class, ``share``: how much of it, in percent."""

    figure: str
    lines: Sequence[str] = ()
    tone: str = ""
    share: int = 0


@dataclass(frozen=True)
class _Row:
    name: str
    cells: Sequence[tuple[str, str] | None]


def plans_page(
    name: str,
    figures: Sequence[CellFigures],
    cells: Sequence[PlanCell | FailedCell],
    prompts: Sequence[str],
    facts: dict[str, str],
    command: str,
) -> str:
    """Renders the page as HTML; ``cells`` belong to ``figures``, and ``prompts`` to their images."""
    against = any(one.ratios for one in figures)
    measured = [one for one in cells if isinstance(one, PlanCell)]
    small = not measured or max(measured[0].full.shape[1:3]) <= WIDEST
    page = {
        "title": f"{name} with other plans than it was calibrated for",
        "headline": headline(figures),
        "about": f"Calibrated for {facts['Calibrated for']}. Activation ranges are looked up by nearest noise level.",
        "heat": _heat(figures, against=against),
        "problems": [f"{one.planned.name}: {one.problem}" for one in figures if one.problem],
        "columns": ["plan", *_columns(against=against)],
        "rows": [_Row(_plan_name(one), _figures(one, against=against)) for one in figures],
        "pairs": [pair for one in measured for pair in _pairs(one, prompts)],
        "small_pictures": small,
        "pictures_note": "" if small else f"Shown at {SHOWN} pixels.",
        "facts": facts,
        "command": command,
    }
    return environment().get_template("plans.html.j2").render(page=page)


def _heat(figures: Sequence[CellFigures], *, against: bool) -> dict[str, Any]:
    by_plan = {(str(one.planned.plan.scheduler), one.planned.plan.steps): one for one in figures}
    schedulers = list(dict.fromkeys(name for name, _ in by_plan))
    steps = list(dict.fromkeys(count for _, count in by_plan))
    errors = [one.artifact.latent_mse.median.mean for one in figures if one.artifact]
    cell = _ratio_cell if against else lambda one: _error_cell(one, min(errors), max(errors))
    rows = [(name, [cell(by_plan[name, count]) for count in steps]) for name in schedulers]
    heading, about = (
        (
            "Latent error, as a multiple of recalibrating for the plan",
            "Ratio of the medians over the pictures, with its 95 % interval over pairs of pictures; below it the "
            f"median latent errors themselves. With the interval below {TOLERATED:g} the plan counts as kept; with the "
            "interval above it, bitbrush recalibrate brings the second figure; the others are not coloured.",
        )
        if against
        else ("Latent error to full precision", "Median over the pictures, with its 95 % interval.")
    )
    return {"heading": heading, "about": about, "steps": steps, "rows": rows}


def _ratio_cell(one: CellFigures) -> _HeatCell:
    if one.artifact is None:
        return _HeatCell("–", ["not measured"])
    own = _short(one.artifact.latent_mse.median)
    if one.is_calibrated:
        return _HeatCell("1", ["the calibrated plan", own], "own", 100)
    if one.ratios is None or one.recalibrated is None:
        return _HeatCell("–", [own])
    ratio = one.ratios.of_medians
    again = _short(one.recalibrated.latent_mse.median)
    lines = [f"{ratio.low:.2f} to {ratio.high:.2f}", f"{own} / {again}"]
    found = standing(ratio)
    farthest = 1.0 if found is Standing.KEPT else FARTHEST
    tone = "" if found is Standing.OPEN else found.value
    return _HeatCell(f"{ratio.mean:.2f}", lines, tone, _share(_place(ratio.mean, TOLERATED, farthest)))


def _error_cell(one: CellFigures, low: float, high: float) -> _HeatCell:
    """Colours without recalibration: the larger a plan's error among all plans, the deeper."""
    if one.artifact is None:
        return _HeatCell("–", ["not measured"])
    error = one.artifact.latent_mse.median
    place = _place(error.mean, low, high) if 0 < low < high else 0.0
    lines = [format_interval(error)[1]] + (["the calibrated plan"] if one.is_calibrated else [])
    return _HeatCell(_short(error), lines, "lost", _share(place))


def _place(value: float, start: float, end: float) -> float:
    """Where the value lies between the two by ratios, 0 to 1."""
    return min(1.0, max(0.0, math.log(value / start) / math.log(end / start)))


def _share(place: float) -> int:
    return round(PALE + (DEEP - PALE) * place)


def _columns(*, against: bool) -> list[str]:
    own = [f"{metric}, {of}" for metric in (LATENT_MSE, PSNR) for of in ("median", "mean")]
    if not against:
        return own
    return [*own, *(f"recalibrated: {column}" for column in own), "ratio of medians", "ratio of means"]


def _figures(one: CellFigures, *, against: bool) -> list[tuple[str, str] | None]:
    cells: list[tuple[str, str] | None] = []
    for of in (one.artifact, one.recalibrated) if against else (one.artifact,):
        spreads = (of.latent_mse, of.psnr) if of else ()
        cells += [format_interval(interval) for spread in spreads for interval in (spread.median, spread.mean)] or [
            None
        ] * 4
    if against:
        cells += (
            [format_interval(one.ratios.of_medians), format_interval(one.ratios.of_means)]
            if one.ratios
            else [None, None]
        )
    return cells


def _pairs(cell: PlanCell, prompts: Sequence[str]) -> Iterator[dict[str, Any]]:
    again = cell.recalibrated
    for place, index in enumerate(cell.worst.tolist()):
        pictures = [("full precision", picture_uri(cell.full[place]))]
        pictures.append((f"artifact, {cell.artifact.psnr[index]:.1f} dB", picture_uri(cell.artifact.images[place])))
        if again is not None:
            pictures.append((f"recalibrated, {again.psnr[index]:.1f} dB", picture_uri(again.images[place])))
        yield {
            "prompt": prompts[index],
            "about": f"{cell.planned.plan.scheduler}, {cell.planned.plan.steps} steps",
            "pictures": pictures,
        }


def _plan_name(one: CellFigures) -> str:
    plan = one.planned.plan
    return f"{plan.scheduler}, {plan.steps} steps{' (calibrated)' if one.is_calibrated else ''}"


def _short(interval: Interval) -> str:
    return format_number(interval.mean, digits=3)
