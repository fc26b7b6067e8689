"""Page of `plans`: the worst pairs of each plan, quality against steps, a table coloured by what other plans cost."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence

from bitbrush.bench.experiments.cell_store import FailedCell
from bitbrush.bench.experiments.plans.cells import PlanCell
from bitbrush.bench.experiments.plans.figures import TOLERATED, CellFigures, Standing, headline, standing
from bitbrush.bench.experiments.plans.plan_list import Plan
from bitbrush.bench.metrics.interval import Interval
from bitbrush.bench.metrics.paired import HEAVY_TAILED, LATENT_MSE, PSNR
from bitbrush.bench.pages.images import size_note
from bitbrush.bench.pages.number_format import format_interval, format_number
from bitbrush.bench.pages.page import (
    Cell,
    Gallery,
    ImageGroup,
    ImageRow,
    Page,
    PlotSection,
    Row,
    Table,
    TableSection,
    Tile,
    Tone,
    interval_cell,
    render_page,
)
from bitbrush.bench.pages.plots import MOST_SERIES, Axis, LinePlot, Scale, Series

PALE, DEEP = 10, 50
"""Percent of full colour of a cell, so that its text stays readable."""
FARTHEST = 2.0
"""Ratio of errors at which a cell has the deepest colour."""

_TONES = {Standing.KEPT: Tone.GOOD, Standing.LOST: Tone.BAD, Standing.OPEN: Tone.PLAIN}
_FIGURES_ABOUT = f"Each with its 95 % interval. {HEAVY_TAILED}"


def plans_page(
    name: str,
    figures: Sequence[CellFigures],
    cells: Sequence[PlanCell | FailedCell],
    prompts: Sequence[str],
    facts: Mapping[str, str],
    command: str,
) -> str:
    """Renders the page as HTML.

    Args:
        name: Name of the artifact.
        figures: Figures of each plan.
        cells: Cells that they were computed from, in the same order.
        prompts: Prompts of the images.
        facts: How it was measured, by name.
        command: Command that makes the page again.
    """
    compared = any(figure.ratios for figure in figures)
    measured = [cell for cell in cells if isinstance(cell, PlanCell)]
    page = Page(
        title=f"{name} with other plans than it was calibrated for",
        verdict=f"{headline(figures)}.",
        facts=facts,
        command=command,
        about=[f"Calibrated for {facts['Calibrated for']}. Activation ranges are looked up by nearest noise level."],
        images_about=_images_about(measured),
        galleries=list(_galleries(measured, prompts, {figure.planned for figure in figures if figure.is_calibrated})),
        quality=_quality(figures),
        tables=[_heat_section(figures, compared=compared), _figures_section(figures, compared=compared)],
    )
    return render_page(page)


def _images_about(measured: Sequence[PlanCell]) -> str:
    note = size_note(measured[0].full[0]) if measured else ""
    return (
        "The worst pairs of every plan: images of the artifact with the largest latent error, from the same noise as "
        f"full precision's. {note}"
    ).strip()


def _galleries(measured: Sequence[PlanCell], prompts: Sequence[str], calibrated: Collection[Plan]) -> Iterator[Gallery]:
    """Yields one gallery for each scheduler; that of the calibrated plan, or else the first, is unfolded."""
    by_scheduler: dict[str, list[PlanCell]] = {}
    for cell in measured:
        by_scheduler.setdefault(str(cell.planned.plan.scheduler), []).append(cell)
    own = [str(planned.plan.scheduler) for planned in calibrated]
    unfolded = next((name for name in [*own, *by_scheduler] if name in by_scheduler), "")
    for name, cells in by_scheduler.items():
        groups = [
            ImageGroup(
                f"{cell.planned.plan.steps} steps",
                "the calibrated plan" if cell.planned in calibrated else "",
                list(_image_rows(cell, prompts)),
            )
            for cell in cells
        ]
        yield Gallery(name, "", groups, folded=name != unfolded)


def _image_rows(cell: PlanCell, prompts: Sequence[str]) -> Iterator[ImageRow]:
    models = {"artifact": cell.artifact, "recalibrated": cell.recalibrated}
    for place, index in enumerate(cell.worst.tolist()):
        tiles = [Tile("full precision", cell.full[place])]
        for name, fidelity in models.items():
            if fidelity is not None:
                tiles.append(Tile(name, fidelity.images[place], f"{fidelity.psnr[index]:.1f} dB"))
        error = format_number(float(cell.artifact.latent_mse[index]), digits=2)
        yield ImageRow(prompts[index], "", tiles, f"{LATENT_MSE} {error}")


def _quality(figures: Sequence[CellFigures]) -> PlotSection | None:
    """Builds the plot of median PSNR against steps, a line for each scheduler; None if nothing was measured."""
    by_scheduler: dict[str, list[CellFigures]] = {}
    for figure in figures:
        if figure.artifact is not None:
            by_scheduler.setdefault(str(figure.planned.plan.scheduler), []).append(figure)
    if not by_scheduler:
        return None
    series = [_quality_line(name, plans) for name, plans in by_scheduler.items()][:MOST_SERIES]
    left_out = f" The first {MOST_SERIES} of {len(by_scheduler)} are shown." if len(by_scheduler) > MOST_SERIES else ""
    caption = f"Median over the images of each plan, against full precision by the same plan.{left_out}"
    steps, fidelity = Axis("denoising steps", Scale.WHOLE), Axis(f"{PSNR} to full precision")
    return PlotSection(
        "Quality against steps", [LinePlot("The artifact by scheduler", series, steps, fidelity, caption)]
    )


def _quality_line(name: str, plans: Sequence[CellFigures]) -> Series:
    points = sorted(
        (figure.planned.plan.steps, figure.artifact.psnr.median) for figure in plans if figure.artifact is not None
    )
    steps, medians = [step for step, _ in points], [median for _, median in points]
    means = [median.mean for median in medians]
    if all(math.isfinite(median.low) and math.isfinite(median.high) for median in medians):
        return Series(name, steps, means, [median.low for median in medians], [median.high for median in medians])
    return Series(name, steps, means)


def _heat_section(figures: Sequence[CellFigures], *, compared: bool) -> TableSection:
    by_plan = {(str(figure.planned.plan.scheduler), figure.planned.plan.steps): figure for figure in figures}
    schedulers = list(dict.fromkeys(name for name, _ in by_plan))
    steps = list(dict.fromkeys(count for _, count in by_plan))
    errors = [figure.artifact.latent_mse.median.mean for figure in figures if figure.artifact]
    rows = []
    for name in schedulers:
        plans = [by_plan[name, count] for count in steps]
        cells = [_ratio_cell(plan) if compared else _error_cell(plan, min(errors), max(errors)) for plan in plans]
        rows.append(Row(name, cells))
    table = Table("", [f"{count} steps" for count in steps], rows, corner="scheduler")
    problems = [f"Not measured. {figure.planned.name}: {figure.problem}" for figure in figures if figure.problem]
    heading, about = _heat_text(compared=compared)
    return TableSection(heading, about, [table], problems)


def _heat_text(*, compared: bool) -> tuple[str, str]:
    if not compared:
        return "Latent error to full precision", "Median over the images, with its 95 % interval."
    return (
        "Latent error, as a multiple of recalibrating for the plan",
        "Ratio of the medians over the images, with its 95 % interval over pairs of images; below it the median latent "
        f"errors themselves, artifact / recalibrated. With the interval below {TOLERATED:g} the plan counts as kept. "
        "With the interval above it, bitbrush recalibrate reaches the second figure. The others are not coloured.",
    )


def _ratio_cell(figure: CellFigures) -> Cell:
    if figure.artifact is None:
        return Cell("–", "not measured")
    error = _short(figure.artifact.latent_mse.median)
    if figure.is_calibrated:
        return Cell("1", f"the calibrated plan\n{error}", Tone.NEUTRAL, 100)
    if figure.ratios is None or figure.recalibrated is None:
        return Cell("–", error)
    ratio = figure.ratios.of_medians
    recalibrated = _short(figure.recalibrated.latent_mse.median)
    note = f"{ratio.low:.2f} to {ratio.high:.2f}\n{error} / {recalibrated}"
    kept = standing(ratio)
    farthest = 1.0 if kept is Standing.KEPT else FARTHEST
    return Cell(f"{ratio.mean:.2f}", note, _TONES[kept], _strength(_place(ratio.mean, TOLERATED, farthest)))


def _error_cell(figure: CellFigures, low: float, high: float) -> Cell:
    """Colours by error alone: the larger a plan's error among all plans, the deeper."""
    if figure.artifact is None:
        return Cell("–", "not measured")
    error = figure.artifact.latent_mse.median
    place = _place(error.mean, low, high) if 0 < low < high else 0.0
    lines = [format_interval(error)[1], *(["the calibrated plan"] if figure.is_calibrated else [])]
    return Cell(_short(error), "\n".join(lines), Tone.BAD, _strength(place))


def _place(value: float, start: float, end: float) -> float:
    """Returns where the value lies between the two by ratios, 0 to 1."""
    return min(1.0, max(0.0, math.log(value / start) / math.log(end / start)))


def _strength(place: float) -> int:
    return round(PALE + (DEEP - PALE) * place)


def _figures_section(figures: Sequence[CellFigures], *, compared: bool) -> TableSection:
    columns = [f"{metric}, {statistic}" for metric in (LATENT_MSE, PSNR) for statistic in ("median", "mean")]
    if compared:
        columns += [f"recalibrated: {column}" for column in columns]
        columns += ["ratio of medians", "ratio of means"]
    rows = [Row(_plan_name(figure), list(_figure_cells(figure, compared=compared))) for figure in figures]
    return TableSection("All figures", _FIGURES_ABOUT, [Table("", columns, rows, corner="plan")])


def _figure_cells(figure: CellFigures, *, compared: bool) -> Iterator[Cell | None]:
    models = (figure.artifact, figure.recalibrated) if compared else (figure.artifact,)
    for model in models:
        spreads = (model.latent_mse, model.psnr) if model else (None, None)
        for spread in spreads:
            yield from (interval_cell(spread.median), interval_cell(spread.mean)) if spread else (None, None)
    if compared:
        ratios = figure.ratios
        yield from (interval_cell(ratios.of_medians), interval_cell(ratios.of_means)) if ratios else (None, None)


def _plan_name(figure: CellFigures) -> str:
    plan = figure.planned.plan
    return f"{plan.scheduler}, {plan.steps} steps{' (calibrated)' if figure.is_calibrated else ''}"


def _short(interval: Interval) -> str:
    return format_number(interval.mean, digits=3)
