"""The demo's page: one HTML file that holds everything it shows and asks the network for nothing."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bitbrush.bench.metrics.interval import Interval
from bitbrush.bench.pages.plots import LinePlot
from bitbrush.bench.pages.templating import environment
from bitbrush.session.disk import write_whole


@dataclass(frozen=True, slots=True)
class GalleryRow:
    """One prompt with every candidate's picture of it, all from the same initial noise.

    `images` maps candidate names to uint8 `(H, W, 3)`, full precision included; `psnr` gives those of the others in dB.
    """

    prompt: str
    style: str
    seed: int
    images: Mapping[str, NDArray[np.uint8]]
    psnr: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class CandidateRow:
    """What one candidate weighs and how near it comes to full precision.

    `name` is its key in the gallery, `label` what people read. `weight_bits` and `activation_bits` are averages.
    `denoiser_mib` is the size of the denoiser's weight files, `float32_mib` of its parameters in float32. `figures`
    maps a prompt style to metrics, each called by its name and unit ("PSNR (dB)"); it is empty for full precision,
    which would be compared with itself.
    """

    name: str
    label: str
    weight_bits: float
    activation_bits: float
    denoiser_mib: float
    float32_mib: float
    figures: Mapping[str, Mapping[str, Interval]]


@dataclass(frozen=True, slots=True)
class DemoPage:
    """Everything the page says. The first of `candidates` is full precision; the gallery's columns keep their order.

    `verdict` is one sentence, `command` makes the page again, `facts` tell how it was made (plan, prompts, versions,
    cost of each phase). All text is escaped.

    Raises ValueError where candidates are missing or called alike, or a gallery row does not have an image of each and
    a PSNR of all but the first.
    """

    title: str
    verdict: str
    command: str
    facts: Mapping[str, str]
    gallery: Sequence[GalleryRow]
    candidates: Sequence[CandidateRow]
    plots: Sequence[LinePlot]

    def __post_init__(self) -> None:
        names = [candidate.name for candidate in self.candidates]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"candidates are {names}; a page needs full precision first, and names that differ")
        for row in self.gallery:
            if set(row.images) != set(names):
                raise ValueError(f"prompt {row.prompt!r} has images of {sorted(row.images)}; candidates are {names}")
            if missing := set(names[1:]) - set(row.psnr):
                raise ValueError(f"prompt {row.prompt!r} has no PSNR of {sorted(missing)}")
            for name, image in row.images.items():
                if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                    raise ValueError(
                        f"prompt {row.prompt!r}: the image of {name!r} is {image.dtype} {image.shape}; pictures are "
                        "uint8 (H, W, 3)"
                    )


def render_page(page: DemoPage) -> str:
    """The page as HTML: verdict, gallery, table, plots, facts."""
    return (
        environment()
        .get_template("demo.html.j2")
        .render(
            page=page,
            reference=page.candidates[0],
            others=page.candidates[1:],
            styles=list(dict.fromkeys(row.style for row in page.gallery)),
            tables=_tables(page.candidates),
            png_uri=png_uri,
        )
    )


def write_page(page: DemoPage, path: Path) -> None:
    """Writes the page to `path`, all of it or nothing."""
    write_whole(render_page(page), path)


def png_uri(image: NDArray[np.uint8]) -> str:
    """The image `(H, W, 3)` as a `data:` URI of a PNG, every pixel kept."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _tables(candidates: Sequence[CandidateRow]) -> dict[str, list[str]]:
    """Per prompt style, its metrics in the order in which they first come up."""
    tables: dict[str, list[str]] = {}
    for candidate in candidates:
        for style, figures in candidate.figures.items():
            known = tables.setdefault(style, [])
            known += [metric for metric in figures if metric not in known]
    return tables
