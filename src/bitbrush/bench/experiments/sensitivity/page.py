"""Page of ``bitbrush sensitivity``."""

from collections.abc import Iterator, Mapping, Sequence

from bitbrush.bench.experiments.sensitivity.analysis import Recommendation, StepSensitivity
from bitbrush.bench.metrics.interval import Interval
from bitbrush.bench.metrics.paired import PSNR
from bitbrush.bench.pages.page import Cell, Page, PlotSection, Row, Table, TableSection, interval_cell, render_page
from bitbrush.bench.pages.plots import STEP_AXIS, Axis, LinePlot, Scale, Series


def sensitivity_page(
    sensitivities: Sequence[StepSensitivity],
    recommendation: Recommendation,
    facts: Mapping[str, str],
    *,
    command: str,
    clip_name: str,
) -> str:
    """Renders the page as HTML: the recommendation, the curves, a table of all steps."""
    advice = (
        f"Relax {recommendation.relax}: those steps cost the images most."
        if recommendation.relax
        else "Neither end of the steps is shown to stand out."
    )
    match = f"change of CLIP score ({clip_name})"
    fidelity, *others = _plots(sensitivities, match)
    page = Page(
        title=f"Sensitivity of {facts['Model']} over the steps",
        verdict=advice,
        facts=facts,
        command=command,
        about=[f"{recommendation.reason[0].upper()}{recommendation.reason[1:]}."],
        quality=PlotSection("Image quality when a single step is disturbed", [fidelity]),
        tables=[_table_section(sensitivities, match)],
        plots=PlotSection("Error and text-image matching", others),
    )
    return render_page(page)


def _table_section(sensitivities: Sequence[StepSensitivity], match: str) -> TableSection:
    columns = ["timestep", PSNR, "image MSE", match]
    rows = []
    for step in sensitivities:
        intervals = (step.psnr, step.image_mse, step.match)
        rows.append(Row(str(step.step), [Cell(f"{step.timestep:g}"), *map(interval_cell, intervals)]))
    table = Table("", columns, rows, corner="step")
    about = "Mean over the images, and below it its 95 % interval."
    if len({step.timestep for step in sensitivities}) < len(sensitivities):
        about += " Each row is a call of the denoiser; this scheduler calls it more than once at a timestep."
    return TableSection("All steps", about, [table], folded=len(rows) > 12)


def _plots(sensitivities: Sequence[StepSensitivity], match: str) -> Iterator[LinePlot]:
    yield _curve(
        "Fidelity to the undisturbed image",
        sensitivities,
        [step.psnr for step in sensitivities],
        Axis(PSNR),
        "Of the final images when this step alone is disturbed; the deeper, the more the step matters.",
    )
    yield _curve(
        "Squared error",
        sensitivities,
        [step.image_mse for step in sensitivities],
        Axis("image MSE", Scale.LOG),
        "The few images that turn into another one decide this mean.",
    )
    yield _curve(
        "Text-image matching",
        sensitivities,
        [step.match for step in sensitivities],
        Axis(match),
        "Below 0, the images fit their prompts less well.",
    )


def _curve(
    title: str, sensitivities: Sequence[StepSensitivity], intervals: Sequence[Interval], axis: Axis, caption: str
) -> LinePlot:
    floor = 1e-9 if axis.scale is Scale.LOG else float("-inf")
    columns = [[max(getattr(interval, bound), floor) for interval in intervals] for bound in ("mean", "low", "high")]
    steps = [step.step for step in sensitivities]
    return LinePlot(title, [Series(axis.label, steps, *columns)], STEP_AXIS, axis, caption)
