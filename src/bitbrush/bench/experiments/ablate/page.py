"""Page of an ablation: every recipe's images from the same noise, quality against bits, a table of each bit setting."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.experiments.ablate import tables
from bitbrush.bench.experiments.ablate.cells import Cell
from bitbrush.bench.experiments.ablate.markdown import protocol_text
from bitbrush.bench.experiments.ablate.plots import quality_plots, step_plots
from bitbrush.bench.experiments.ablate.recipes import Setting
from bitbrush.bench.experiments.ablate.standing import headline, missing_text
from bitbrush.bench.experiments.ablate.tables import Document, ranked
from bitbrush.bench.experiments.cell_store import FailedCell
from bitbrush.bench.metrics.paired import HEAVY_TAILED
from bitbrush.bench.pages.images import size_note
from bitbrush.bench.pages.number_format import format_number
from bitbrush.bench.pages.page import Cell as TableCell
from bitbrush.bench.pages.page import (
    Gallery,
    ImageGroup,
    ImageRow,
    Page,
    PlotSection,
    Row,
    Table,
    TableSection,
    Tile,
    render_page,
)
from bitbrush.bench.pages.plots import LinePlot
from bitbrush.bench.pages.prompt_sets import explained

_FIGURES_ABOUT = f"Highest PSNR first, each with its 95 % interval. {HEAVY_TAILED}"
_SETS_ABOUT = (
    "Whether a recipe keeps less where the prompts' style is not the calibration's; an interval that holds 0 does not "
    "tell."
)


@dataclass(frozen=True)
class Samples:
    """First prompts of a set, with full precision's images ``(N, H, W, 3)``."""

    name: str
    prompts: Sequence[str]
    full: NDArray[np.uint8]


def ablation_page(document: Document, cells: Mapping[Setting, Cell | FailedCell], samples: Sequence[Samples]) -> str:
    """Renders the page as HTML.

    Args:
        document: Content of ``results.json``.
        cells: Cells that are there, with their images.
        samples: Full precision's images of the same prompts.
    """
    missing = missing_text(document)
    steps = list(step_plots(document).values())
    page = Page(
        title=f"Ablation of {document['protocol']['model']}",
        verdict=f"{headline(document)}.",
        facts=dict(_facts(document)),
        command=document["command"],
        about=[_about(document)],
        warnings=[f"{missing} The same command resumes; until then no recipe is named nearest."] if missing else [],
        images_about=(
            "Each row starts from the same noise, through full precision and every recipe. The first prompts of each "
            f"set, not chosen. {size_note(samples[0].full[0])}"
        ).strip(),
        galleries=list(_galleries(document, cells, samples)),
        quality=_plot_section("Quality against bits", list(quality_plots(document).values())),
        tables=list(_table_sections(document)),
        plots=_plot_section("Error over the steps", steps),
    )
    return render_page(page)


def _about(document: Document) -> str:
    sets = document["protocol"]["prompt_sets"]
    images = " and ".join(f"{one['prompts']} of {one['name']}" for one in sets)
    return (
        f"{len(document['recipes'])} recipes at {_listed(document['bits'])}, by mean PSNR over the images of "
        f"held-out prompts, {images}, each beside full precision's from the same noise."
    )


def _plot_section(heading: str, plots: Sequence[LinePlot]) -> PlotSection | None:
    return PlotSection(heading, plots) if plots else None


def _galleries(
    document: Document, cells: Mapping[Setting, Cell | FailedCell], samples: Sequence[Samples]
) -> Iterator[Gallery]:
    """Yields one gallery for each bit setting; the last one, of the fewest bits as a rule, is unfolded."""
    domains = {one["name"]: one["domain"] for one in document["protocol"]["prompt_sets"]}
    settings = [bits for bits in document["bits"] if any(cell["bits"] == bits for cell in document["cells"])]
    for bits in settings:
        groups = [
            ImageGroup(
                prompt_set.name,
                explained(prompt_set.name, domains[prompt_set.name]),
                list(_image_rows(document, bits, cells, prompt_set)),
            )
            for prompt_set in samples
        ]
        yield Gallery(bits, "recipes by mean PSNR, highest first", groups, folded=bits != settings[-1])


def _image_rows(
    document: Document, bits: str, cells: Mapping[Setting, Cell | FailedCell], prompt_set: Samples
) -> Iterator[ImageRow]:
    names = [cell["recipe"] for cell in ranked([cell for cell in document["cells"] if cell["bits"] == bits])]
    by_name = {setting.name: cell for setting, cell in cells.items() if str(setting.bits) == bits}
    for index, (prompt, full) in enumerate(zip(prompt_set.prompts, prompt_set.full, strict=True)):
        tiles = [Tile("full precision", full)]
        for name in names:
            cell = by_name[name]
            assert isinstance(cell, Cell)
            values = cell.sets[prompt_set.name]
            tiles.append(Tile(name, values.images[index], f"{values.psnr[index]:.1f} dB"))
        yield ImageRow(prompt, f"{prompt_set.name} {index}", tiles)


def _table_sections(document: Document) -> Iterator[TableSection]:
    fallbacks = [f"Not in integers: {line}" for line in tables.fallback_lines(document)]
    figures = [_table(table) for table in tables.bits_tables(document)]
    yield TableSection("Recipes at every bit setting", _FIGURES_ABOUT, figures, fallbacks)
    if by_set := [_table(table) for table in tables.set_tables(document)]:
        sets = [
            f"{one['name']}: {explained(one['name'], one['domain'])}." for one in document["protocol"]["prompt_sets"]
        ]
        yield TableSection("By prompt set", " ".join([_SETS_ABOUT, *sets]), by_set)


def _table(table: tables.Table) -> Table:
    rows = [Row(row.name, [None if text is None else TableCell(*text) for text in row.cells]) for row in table.rows]
    notes = [f"Failed. {problem}" for problem in table.problems]
    return Table(table.name, table.columns, rows, corner="recipe", notes=notes)


def _facts(document: Document) -> Iterator[tuple[str, str]]:
    protocol, reference = document["protocol"], document["reference"]
    options = ", ".join(f"{name} {value}" for name, value in protocol["model_options"].items() if value)
    yield "Protocol", protocol_text(document)
    yield "Model", f"{protocol['model']}{f', {options}' if options else ''}, sha256 {reference['digest'][:16]}"
    checkpoint, float32 = (format_number(reference[key], digits=4) for key in ("denoiser_mib", "float32_mib"))
    yield "Denoiser", f"{checkpoint} MiB in the checkpoint, which are {float32} in float32"
    yield "Floor", f"Full precision again, from seed {protocol['seed'] + 1}: how far apart two right images are."
    yield "CLIP", f"{protocol['clip']['name']}, sha256 {protocol['clip']['sha256'][:16]}"
    cells = [cell for cell in document["cells"] if not cell["problem"]]
    yield "Executed by", "\n".join(dict.fromkeys(cell["runtime"] for cell in cells))
    for cell in cells:
        if cell["bits"] == document["bits"][0]:
            yield f"Recipe {cell['recipe']}", _keys(cell["keys"])
    yield "Versions", ", ".join(f"{name} {number}" for name, number in document["versions"].items())


def _keys(keys: Mapping[str, Any]) -> str:
    """Lists the keys that tell recipes apart; the plan is the same for all."""
    names = ("method", "weights", "activations", "relax", "weight_allocation", "rounding", "weight_range")
    return ", ".join(f"{name} = {keys[name]}" for name in (*names, "activation_range", "num_prompts"))


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
