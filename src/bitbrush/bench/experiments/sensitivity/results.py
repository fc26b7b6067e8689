"""Files of a sensitivity analysis: ``results.json``, ``results.csv`` and ``report.html``."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitbrush.bench.experiments.results import results_document, results_text
from bitbrush.bench.experiments.sensitivity.analysis import Recommendation, StepSensitivity, recommend
from bitbrush.bench.experiments.sensitivity.page import sensitivity_page
from bitbrush.bench.experiments.value_table import VALUES, Row, TableImages, value_rows, write_values
from bitbrush.bench.metrics.paired import PSNR
from bitbrush.session.disk import write_whole

EXPERIMENT = "sensitivity"
RESULTS, REPORT = "results.json", "report.html"
KNOWN = (RESULTS, VALUES, REPORT)
"""Names of the files in the output folder."""


def write_sensitivity(
    sensitivities: Sequence[StepSensitivity],
    directory: Path,
    *,
    facts: Mapping[str, str],
    protocol: Mapping[str, Any],
    prompts: Sequence[str],
    command: str = "",
) -> Recommendation:
    """Writes results, table and page.

    Args:
        sensitivities: Sensitivity of each disturbed step.
        directory: Output folder.
        facts: Descriptions for people by heading.
        protocol: Settings that the figures depend on; ``clip`` names the network, ``prompt_sets`` the one set.
        prompts: Prompts of the images.
        command: Command line.

    Returns:
        The interval of steps to relax.
    """
    advice = recommend(sensitivities)
    content = {
        "facts": dict(facts),
        "recommendation": asdict(advice),
        "steps": [asdict(step) for step in sensitivities],
    }
    document = results_document(EXPERIMENT, command=command, protocol=protocol, content=content)
    write_values(_rows(sensitivities, protocol, prompts), directory / VALUES)
    write_whole(results_text(document), directory / RESULTS)
    clip_name = protocol["clip"]["name"]
    page = sensitivity_page(sensitivities, advice, facts, command=command, clip_name=clip_name)
    write_whole(page, directory / REPORT)
    return advice


def _rows(
    sensitivities: Sequence[StepSensitivity], protocol: Mapping[str, Any], prompts: Sequence[str]
) -> Iterator[Row]:
    (prompt_set,) = protocol["prompt_sets"]
    images = TableImages(prompt_set["name"], prompts, [protocol["seed"]] * len(prompts))
    for step in sensitivities:
        values = {PSNR: step.psnr_by_image, f"CLIP score ({protocol['clip']['name']})": step.clip_by_image}
        yield from value_rows(EXPERIMENT, protocol["disturbance"], images, values, setting=str(step.step))
