"""``report.html`` of a sensitivity analysis: the recommendation, the curves, and a table of all steps."""

from collections.abc import Mapping, Sequence

from bitbrush.bench.experiments.sensitivity.analysis import Recommendation, StepSensitivity
from bitbrush.bench.metrics.interval import Interval
from bitbrush.bench.metrics.paired import PSNR
from bitbrush.bench.pages.number_format import format_interval
from bitbrush.bench.pages.plots import (
    STEP_AXIS,
    Axis,
    LinePlot,
    Scale,
    Series,
)
from bitbrush.bench.pages.templating import environment


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


def _plots(sensitivities: Sequence[StepSensitivity], match: str) -> list[LinePlot]:
    steps = [one.step for one in sensitivities]

    def curve(title: str, intervals: Sequence[Interval], axis: Axis, caption: str) -> LinePlot:
        floor = 1e-9 if axis.scale is Scale.LOG else float("-inf")
        columns = [[max(getattr(i, bound), floor) for i in intervals] for bound in ("mean", "low", "high")]
        return LinePlot(title, [Series(axis.label, steps, *columns)], STEP_AXIS, axis, caption)

    return [
        curve(
            "Image fidelity",
            [one.psnr for one in sensitivities],
            Axis(PSNR),
            "Of the final images when this step alone is disturbed.",
        ),
        curve(
            "Image error",
            [one.image_mse for one in sensitivities],
            Axis("image MSE", Scale.LOG),
            "The same in squared errors. Their mean is made by the few images that turn into another.",
        ),
        curve(
            "Text-image matching",
            [one.match for one in sensitivities],
            Axis(match),
            "Below 0, the images fit their prompts less well.",
        ),
    ]
