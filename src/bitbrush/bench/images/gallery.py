"""A folder of generated pictures and the table that tells what each is."""

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
class Picture:
    """A written PNG; ``constant`` if all its pixels are of one colour, black for instance."""

    path: Path
    prompt: str
    seed: int
    constant: bool


def require_pictures(folder: Path) -> None:
    """Raises ValueError if ``folder`` holds something, but no table of pictures; DiskError if it is read-only."""
    require_writable(folder)
    if folder.exists() and not (folder / TABLE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and holds no {TABLE}; choose another directory for the images, or a new one")


def write_pictures(
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
) -> Iterator[Picture]:
    """Image j of every prompt from a CPU generator seeded with ``seed + j``, one by one as they are written.

    ``inputs``: what else the pipeline is given, the same for every prompt, as ``{"image": ...}``.

    Pictures that are there already stay, and numbers go on after theirs; ``facts`` go into each entry of the table,
    which is up to date whenever a picture is handed out. Batch size and order decide nothing but speed.
    """
    rows = [(place, prompt, seed + j) for place, prompt in enumerate(prompts) for j in range(images_per_prompt)]
    places, texts, seeds = zip(*rows, strict=True)
    same = {name: (value,) * len(rows) for name, value in (inputs or {}).items()}
    batches = split(PromptBatch(texts, seeds, same, places), batch_size)
    table = folder / TABLE
    entries = json.loads(table.read_text(encoding="utf-8")) if table.exists() else []
    generated = generate_each(pipe, batches, plan, progress=progress)
    for batch, part in zip(batches, generated, strict=True):
        for prompt, own_seed, image in zip(batch.prompts, batch.seeds, part.images, strict=True):
            path = _write_png(image, folder, len(entries), prompt)
            entries.append({"file": path.name, "prompt": prompt, "seed": own_seed, **facts})
            write_whole(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", table)
            yield Picture(path, prompt, own_seed, constant=bool((image == image[0, 0]).all()))


def _write_png(image: NDArray[np.uint8], folder: Path, index: int, prompt: str) -> Path:
    """Named by the next number that is free. The prompt in the name is for people; the table has all of it."""
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
    """At most 48 letters, digits and hyphens that remind of the prompt."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower())[:SLUG_LENGTH].strip("-") or "image"
