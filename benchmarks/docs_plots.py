"""Draws the plots of docs/ from the recorded results: ``python benchmarks/docs_plots.py``."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bitbrush.bench.experiments.ablate.plots import quality_plots, step_plots
from bitbrush.bench.pages.plot_files import plot_file
from bitbrush.bench.pages.plots import (
    STEP_AXIS,
    Axis,
    LinePlot,
    Scale,
    Series,
)
from bitbrush.session.disk import write_whole

ROOT = Path(__file__).parents[1]
ABLATIONS = {
    "ablation-emoji-sd": "docs",
    "ablation-emoji-sdxl": "docs",
    "stages-emoji-sd": "docs/stages",
    "paper-emoji-sd": "docs/paper",
}
"""Recorded results of ablations, and the folder of the text that shows them."""
METHODS = ("rtn", "one-shot", "progressive", "progressive, x0 relaxed", "progressive, xT relaxed")


def docs_plots() -> dict[str, LinePlot]:
    """Returns all plots by their path below the repository."""
    plots = {f"docs/plots/error-by-step-{bits}.svg": plot for bits, plot in _method_plots()}
    for name, folder in ABLATIONS.items():
        document = _recorded(name)
        found = quality_plots(document) | step_plots(document)
        plots |= {f"{folder}/{path}": plot for path, plot in found.items()}
    return plots


def _method_plots() -> Iterator[tuple[str, LinePlot]]:
    """The mean error of both styles' images after each denoiser call."""
    results = _recorded("methods-emoji-sd")["results"]
    for bits in ("W8A8", "W4A8", "W8A6", "W4A6", "W4A4"):
        series = []
        for method in METHODS:
            styles = results[f"{bits} {method}"]
            errors = np.mean([styles[style]["latent_mse_by_step"] for style in ("coco", "sdp")], axis=0)
            series.append(Series(method, range(len(errors)), errors.tolist()))
        axis = Axis("latent MSE to full precision", Scale.LOG)
        yield bits, LinePlot(f"Error over the steps, {bits}", series, STEP_AXIS, axis)


def _recorded(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))
    return document


if __name__ == "__main__":
    for path, plot in docs_plots().items():
        write_whole(plot_file(plot, Path(path)), ROOT / path)
