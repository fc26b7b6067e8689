"""``report.html`` of an ablation: plots, a table for every bit setting, and every recipe's picture of a noise."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.experiments.ablate.cells import Cell
from bitbrush.bench.experiments.ablate.markdown import protocol_text
from bitbrush.bench.experiments.ablate.plots import quality_plots, step_plots
from bitbrush.bench.experiments.ablate.recipes import Setting
from bitbrush.bench.experiments.ablate.standing import headline, missing_text
from bitbrush.bench.experiments.ablate.tables import (
    Document,
    bits_tables,
    fallback_lines,
    ranked,
    set_tables,
)
from bitbrush.bench.experiments.bench.report import SHOWN, WIDEST, picture_uri
from bitbrush.bench.experiments.cell_store import FailedCell
from bitbrush.bench.pages.number_format import format_number
from bitbrush.bench.pages.templating import environment


@dataclass(frozen=True)
class Samples:
    """The first prompts of a set with full precision's pictures ``(N, H, W, 3)``."""

    name: str
    prompts: Sequence[str]
    full: NDArray[np.uint8]


@dataclass(frozen=True)
class _Strip:
    """One prompt: pictures with what is written below each."""

    prompt: str
    about: str
    pictures: Sequence[tuple[str, str, str]]


def ablation_page(document: Document, cells: Mapping[Setting, Cell | FailedCell], samples: Sequence[Samples]) -> str:
    """As HTML, of the document that ``results.json`` holds and of the pictures that were kept."""
    small = max(samples[0].full.shape[1:3]) <= WIDEST
    page = {
        "title": f"Ablation of {document['protocol']['model']}",
        "headline": headline(document),
        "about": _about(document),
        "missing": missing_text(document),
        "plots": list(quality_plots(document).values()),
        "tables": list(bits_tables(document)),
        "set_tables": list(set_tables(document)),
        "fallbacks": fallback_lines(document),
        "step_plots": list(step_plots(document).values()),
        "galleries": [(bits, list(_strips(document, bits, cells, samples))) for bits in document["bits"]],
        "small_pictures": small,
        "pictures_note": "" if small else f"Shown at {SHOWN} pixels.",
        "facts": dict(_facts(document)),
        "command": document["command"],
    }
    return environment().get_template("ablation.html.j2").render(page=page)


def _about(document: Document) -> str:
    sets = document["protocol"]["prompt_sets"]
    pictures = " and ".join(f"{one['prompts']} of {one['name']}" for one in sets)
    return (
        f"{len(document['recipes'])} recipes at {_listed(document['bits'])}, by mean PSNR over the pictures of "
        f"held-out prompts, {pictures}, each beside full precision's from the same noise."
    )


def _strips(
    document: Document, bits: str, cells: Mapping[Setting, Cell | FailedCell], samples: Sequence[Samples]
) -> Iterator[_Strip]:
    names = [one["recipe"] for one in ranked([one for one in document["cells"] if one["bits"] == bits])]
    by_name = {one.name: cell for one, cell in cells.items() if str(one.bits) == bits}
    for of_set in samples:
        for index, (prompt, full) in enumerate(zip(of_set.prompts, of_set.full, strict=True)):
            pictures = [("full precision", "", picture_uri(full))]
            for name in names:
                cell = by_name[name]
                assert isinstance(cell, Cell)
                own = cell.sets[of_set.name]
                pictures.append((name, f"{own.psnr[index]:.1f} dB", picture_uri(own.images[index])))
            yield _Strip(prompt, f"{of_set.name} {index}", pictures)


def _facts(document: Document) -> Iterator[tuple[str, str]]:
    told, reference = document["protocol"], document["reference"]
    options = ", ".join(f"{name} {value}" for name, value in told["model_options"].items() if value)
    yield "Protocol", protocol_text(document)
    yield "Model", f"{told['model']}{f', {options}' if options else ''}, sha256 {reference['digest'][:16]}"
    checkpoint, float32 = (format_number(reference[key], digits=4) for key in ("denoiser_mib", "float32_mib"))
    yield "Denoiser", f"{checkpoint} MiB in the checkpoint, which are {float32} in float32"
    yield "Floor", f"Full precision again, from seed {told['seed'] + 1}: how far apart two right pictures are."
    yield "CLIP", f"{told['clip']['name']}, sha256 {told['clip']['sha256'][:16]}"
    runtimes = dict.fromkeys(one["runtime"] for one in document["cells"] if not one["problem"])
    yield "Executed by", "\n".join(runtimes)
    for one in document["cells"]:
        if not one["problem"] and one["bits"] == document["bits"][0]:
            yield f"Recipe {one['recipe']}", _keys(one["keys"])
    yield "Versions", ", ".join(f"{name} {number}" for name, number in document["versions"].items())


def _keys(keys: Mapping[str, Any]) -> str:
    """What tells recipes apart; the plan is the same for all."""
    names = ("method", "weights", "activations", "relax", "weight_allocation", "rounding", "weight_range")
    return ", ".join(f"{name} = {keys[name]}" for name in (*names, "activation_range", "num_prompts"))


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
