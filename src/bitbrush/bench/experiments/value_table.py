"""The table beside a results file: a CSV row per image, candidate and metric."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bitbrush.session.disk import write_whole

VALUES = "results.csv"
COLUMNS = {
    "experiment": "Command that wrote the file.",
    "candidate": "Name of what was measured: an artifact, a recipe, full precision, or another seed.",
    "setting": "Bits of an ablation, plan of `plans`, disturbed denoiser call of `sensitivity`; else empty.",
    "prompt_set": "Name of the prompt set.",
    "image": "Index of the image in the prompt set; equal indices are a pair.",
    "prompt": "Prompt of the image.",
    "seed": "Seed of the run; with the prompt it determines the image's noise.",
    "metric": "Name of the metric, unit included.",
    "value": "Value of the metric; empty where the image or its latents are not finite.",
}
"""Description of each column."""


@dataclass(frozen=True)
class TableImages:
    """Images of a prompt set.

    Args:
        prompt_set: Name of the prompt set.
        prompts: Prompt of each image.
        seeds: Seed of each image's run.
    """

    prompt_set: str
    prompts: Sequence[str]
    seeds: Sequence[int]


Row = tuple[str | int | float, ...]


def value_rows(
    experiment: str,
    candidate: str,
    images: TableImages,
    values: Mapping[str, Iterable[float | None]],
    *,
    setting: str = "",
) -> Iterator[Row]:
    """Yields the rows of a candidate on a prompt set.

    Args:
        experiment: Name of the command.
        candidate: Name of the candidate.
        images: The prompt set's images.
        values: A value per image by metric; None leaves the image out.
        setting: Setting under which the candidate was measured.
    """
    for metric, of_images in values.items():
        rows = zip(images.prompts, images.seeds, of_images, strict=True)
        for index, (prompt, seed, value) in enumerate(rows):
            if value is not None:
                number = float(value) if math.isfinite(value) else ""
                yield (experiment, candidate, setting, images.prompt_set, index, prompt, seed, metric, number)


def write_values(rows: Iterable[Row], path: Path) -> None:
    """Writes the table completely or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    write_whole(text.getvalue(), path)
