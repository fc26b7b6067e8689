"""Plots of an ablation, made from its results document."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bitbrush.bench.experiments.ablate.folder import PLOTS
from bitbrush.bench.experiments.ablate.tables import Document, of_all, ranked
from bitbrush.bench.images.gallery import slug
from bitbrush.bench.metrics.paired import PSNR
from bitbrush.bench.pages.plot_files import plot_file
from bitbrush.bench.pages.plots import (
    STEP_AXIS,
    Axis,
    LinePlot,
    Scale,
    Series,
)
from bitbrush.session.disk import write_whole

TOGETHER = 5
"""Number of recipes in a plot, beside the one that all are compared with."""
GEOMETRIC_SINCE = 3
"""First schema version whose errors by step are geometric means; recorded results may be older."""
PRODUCT = Axis("weight bits × activation bits, averages")
FIDELITY = Axis(f"{PSNR} to full precision")
ERROR = Axis("latent MSE to full precision", Scale.LOG)


def quality_plots(document: Document) -> dict[str, LinePlot]:
    """Returns the plots of quality over bits by their path relative to the text that shows them."""
    return {f"{_prefix(document)}-quality-{index}.svg": plot for index, plot in enumerate(_quality(document), start=1)}


def step_plots(document: Document) -> dict[str, LinePlot]:
    """Returns the plots of the error over the steps, one per bit setting, by path."""
    return {f"{_prefix(document)}-steps-{bits}.svg": plot for bits, plot in _steps(document)}


def write_plots(document: Document, beside: Path) -> None:
    """Writes all plots into the folder of plots next to ``beside``, the text that shows them."""
    for name, plot in (quality_plots(document) | step_plots(document)).items():
        path = beside.parent / name
        write_whole(plot_file(plot, path), path)


def _prefix(document: Document) -> str:
    return f"{PLOTS}/ablation-{slug(document['protocol']['model'])}"


def _quality(document: Document) -> Iterator[LinePlot]:
    """Yields plots of PSNR over bits, a line for each recipe, highest PSNR first."""
    by_recipe: dict[str, list[Mapping[str, Any]]] = {}
    for cell in ranked(document["cells"]):
        by_recipe.setdefault(cell["recipe"], []).append(cell)
    groups = list(_groups(_ordered(by_recipe), document["against"]))
    for index, names in enumerate(groups):
        title = "Quality over bits" + (f", {index + 1} of {len(groups)}" if len(groups) > 1 else "")
        series = [_quality_line(name, by_recipe[name]) for name in names]
        caption = "Mean over the images of all prompt sets, with 95 % intervals. " + _places(document)
        yield LinePlot(title, series, PRODUCT, FIDELITY, caption)


def _ordered(by_recipe: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Sorts recipes by number of cells and then by mean PSNR."""

    def place(name: str) -> tuple[int, float]:
        levels = [of_all(cell)["psnr"]["mean"] for cell in by_recipe[name]]
        return -len(levels), -sum(levels) / len(levels)

    return sorted(by_recipe, key=place)


def _groups(names: Sequence[str], against: str) -> Iterator[list[str]]:
    if len(names) <= TOGETHER + 1:
        if names:
            yield list(names)
        return
    others = [name for name in names if name != against]
    for begin in range(0, len(others), TOGETHER):
        group = {*others[begin : begin + TOGETHER], against}
        yield [name for name in names if name in group]


def _quality_line(name: str, cells: Sequence[Mapping[str, Any]]) -> Series:
    points = sorted(((_product(cell), of_all(cell)["psnr"]) for cell in cells), key=lambda point: point[0])
    x, levels = [at for at, _ in points], [level for _, level in points]
    low, mean, high = ([level[key] for level in levels] for key in ("low", "mean", "high"))
    return Series(name, x, mean, low, high)


def _places(document: Document) -> str:
    """Describes where the bit settings are on the axis."""
    places = []
    for bits in document["bits"]:
        products = [round(_product(cell)) for cell in ranked(document["cells"]) if cell["bits"] == bits]
        ends = dict.fromkeys([min(products), max(products)]) if products else ()
        places += [f"{bits} at {' to '.join(map(str, ends))}"] if ends else []
    return f"Bit settings: {', '.join(places)}."


def _product(cell: Mapping[str, Any]) -> float:
    return float(cell["weight_bits"] * cell["activation_bits"])


def _steps(document: Document) -> Iterator[tuple[str, LinePlot]]:
    """Yields plots of the error over the denoiser calls: the first recipes and the one compared with."""
    against = document["against"]
    mean = "Mean" if document["schema_version"] < GEOMETRIC_SINCE else "Geometric mean"
    for bits in document["bits"]:
        cells = ranked([cell for cell in document["cells"] if cell["bits"] == bits])
        shown = [cell for cell in cells if cell["recipe"] != against][:TOGETHER]
        series = []
        for cell in cells:
            errors = of_all(cell)["latent_mse_by_step"]
            if (cell in shown or cell["recipe"] == against) and min(errors) > 0:
                series.append(Series(cell["recipe"], list(range(len(errors))), errors))
        if series:
            caption = f"{mean} over the images after each denoiser call."
            yield bits, LinePlot(f"Error over the steps, {bits}", series, STEP_AXIS, ERROR, caption)
