"""Folder of generated images with a table that describes each."""

import io
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline
from numpy.typing import NDArray
from PIL import Image

from bitbrush.bench.images.generation import generate_each
from bitbrush.session.disk import require_writable, write_whole
from bitbrush.session.progress import Progress, silent
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import PromptBatch, split

TABLE = "images.json"
SLUG_LENGTH = 48


@dataclass(frozen=True)
class WrittenImage:
    """PNG file that was written; ``constant`` if all its pixels have one colour, e.g. black."""

    path: Path
    prompt: str
    seed: int
    constant: bool


def require_image_folder(folder: Path) -> None:
    """Checks that images can be added to ``folder``.

    Raises:
        ValueError: It holds something, but no table of images.
        DiskError: It is read-only.
    """
    require_writable(folder)
    if folder.exists() and not (folder / TABLE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and holds no {TABLE}; choose another directory for the images, or a new one")


def write_images(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    plan: SamplingPlan,
    folder: Path,
    *,
    images_per_prompt: int,
    seed: int,
    batch_size: int,
    facts: dict[str, Any],
    inputs: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> Iterator[WrittenImage]:
    """Generates images and yields each after it is written; image j of a prompt has the seed ``seed + j``.

    Existing images stay, and the numbering continues. The table is up to date whenever an image is yielded.

    Args:
        pipe: Pipeline.
        prompts: Prompts.
        plan: Sampling plan.
        folder: Output folder.
        images_per_prompt: Images of each prompt.
        seed: Seed of the first image of each prompt.
        batch_size: Prompts per denoiser call; changes nothing but speed.
        facts: Values that each entry of the table gets.
        inputs: Further pipeline arguments, the same for every prompt, e.g. ``{"image": ...}``.
        progress: Callback that receives progress reports.
    """
    rows = [(place, prompt, seed + j) for place, prompt in enumerate(prompts) for j in range(images_per_prompt)]
    places, texts, seeds = zip(*rows, strict=True)
    repeated = {name: (value,) * len(rows) for name, value in (inputs or {}).items()}
    batches = split(PromptBatch(texts, seeds, repeated, places), batch_size)
    table = folder / TABLE
    entries = json.loads(table.read_text(encoding="utf-8")) if table.exists() else []
    generated = generate_each(pipe, batches, plan, progress=progress)
    for batch, part in zip(batches, generated, strict=True):
        for prompt, image_seed, image in zip(batch.prompts, batch.seeds, part.images, strict=True):
            path = _write_png(image, folder, len(entries), prompt)
            entries.append({"file": path.name, "prompt": prompt, "seed": image_seed, **facts})
            write_whole(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", table)
            yield WrittenImage(path, prompt, image_seed, constant=bool((image == image[0, 0]).all()))


def _write_png(image: NDArray[np.uint8], folder: Path, index: int, prompt: str) -> Path:
    """Writes an image under the next free number; its name has the start of the prompt, the table all of it."""
    while True:
        path = folder / f"{index:04d}-{slug(prompt)}.png"
        if not any(folder.glob(f"{index:04d}-*")):
            break
        index += 1
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    write_whole(buffer.getvalue(), path)
    return path


def slug(prompt: str) -> str:
    """Shortens a prompt to at most 48 letters, digits and hyphens for a file name."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower())[:SLUG_LENGTH].strip("-") or "image"
