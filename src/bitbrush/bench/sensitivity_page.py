"""What ``bitbrush sensitivity`` writes: ``results.json`` and a page with the curves."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bitbrush.bench.metrics.interval import Interval
from bitbrush.bench.metrics.paired import PSNR
from bitbrush.bench.number_format import format_interval
from bitbrush.bench.page import PagePlot
from bitbrush.bench.plot_scales import Axis, Scale
from bitbrush.bench.plots import STEP_AXIS, Series, line_plot
from bitbrush.bench.sensitivity import Recommendation, StepSensitivity
from bitbrush.bench.templating import environment

SCHEMA_VERSION = 1


def sensitivity_results(
    sensitivities: Sequence[StepSensitivity], recommendation: Recommendation, facts: Mapping[str, Any]
) -> str:
    """As JSON; ``facts`` tell how it was measured."""
    document = {
        "schema_version": SCHEMA_VERSION,
        **facts,
        "recommendation": asdict(recommendation),
        "steps": [asdict(one) for one in sensitivities],
    }
    return json.dumps(document, indent=1) + "\n"


def sensitivity_page(
    sensitivities: Sequence[StepSensitivity],
    recommendation: Recommendation,
    facts: Mapping[str, str],
    *,
    command: str,
    clip_name: str,
) -> str:
    """As HTML: the recommendation, the curves, a table of all steps."""
    model = facts["Model"]
    advice = (
        f"Relax {recommendation.relax}: those steps cost the pictures most."
        if recommendation.relax
        else "Neither end of the steps is shown to stand out."
    )
    match = f"change of CLIP score ({clip_name})"
    rows = [
        [str(one.step), f"{one.timestep:g}", *(format_interval(i) for i in (one.psnr, one.image_mse, one.match))]
        for one in sensitivities
    ]
    page = {
        "title": f"Sensitivity of {model} over the steps",
        "advice": advice,
        "reason": recommendation.reason,
        "plots": list(_plots(sensitivities, match)),
        "columns": ["step", "timestep", PSNR, "image MSE", match],
        "rows": rows,
        "facts": facts,
        "command": command,
    }
    return environment().get_template("sensitivity.html.j2").render(page=page)


def _plots(sensitivities: Sequence[StepSensitivity], match: str) -> list[PagePlot]:
    steps = [one.step for one in sensitivities]

    def curve(name: str, intervals: Sequence[Interval], axis: Axis) -> str:
        floor = 1e-9 if axis.scale is Scale.LOG else float("-inf")
        columns = [[max(getattr(i, bound), floor) for i in intervals] for bound in ("mean", "low", "high")]
        return line_plot([Series(name, steps, *columns)], title=name, x_axis=STEP_AXIS, y_axis=axis)

    fidelity = curve(PSNR, [one.psnr for one in sensitivities], Axis(PSNR))
    error = curve("image MSE", [one.image_mse for one in sensitivities], Axis("image MSE", Scale.LOG))
    matching = curve(match, [one.match for one in sensitivities], Axis("CLIP score"))
    return [
        PagePlot("Image fidelity", fidelity, "Of the final pictures when this step alone is disturbed."),
        PagePlot(
            "Image error", error, "The same in squared errors, whose mean the few pictures make that turn into another."
        ),
        PagePlot("Text-image matching", matching, "Below 0, the pictures fit their prompts less well."),
    ]
