"""Tables of an ablation as Markdown: a whole file, or a marked section of one."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from bitbrush.bench.experiments.ablate.plots import quality_plots, step_plots, write_plots
from bitbrush.bench.experiments.ablate.standing import headline, missing_text
from bitbrush.bench.experiments.ablate.tables import (
    Document,
    Table,
    bits_tables,
    fallback_lines,
    set_tables,
)
from bitbrush.bench.metrics.paired import HEAVY_TAILED
from bitbrush.session.disk import write_whole


def ablation_markdown(document: Document) -> str:
    """Writes the Markdown of a results document, which alone determines it."""
    return "\n".join(_lines(document)) + "\n"


def protocol_text(document: Document) -> str:
    """Describes what was compared in a few sentences."""
    protocol = document["protocol"]
    sets = " and ".join(f"{one['prompts']} of {one['name']} ({one['domain']})" for one in protocol["prompt_sets"])
    prompts = " or ".join(map(str, protocol["calibration_prompts"]))
    return (
        f"{protocol['model']}, {protocol['scheduler']}, {protocol['steps']} steps, "
        f"guidance {protocol['guidance_scale']:g}; quantized with {prompts} calibration prompts; held-out prompts: "
        f"{sets}; every image from the noise that full precision had for it, seed {protocol['seed']}. Executed by "
        f"{protocol['execution']}. Intervals: 95 % bootstrap over prompts, of medians by order statistics. Averages of "
        f"bits leave out the layers next to the latents. {HEAVY_TAILED} "
        f"CLIP score ({protocol['clip']['name']}) less full precision's. Seconds of single "
        "runs, calls for each batch of prompts."
    )


def write_markdown(document: Document, path: Path) -> None:
    """Writes the tables to ``path`` and the plots beside it; in an existing file, between the section's marks.

    Raises:
        ValueError: The file lacks the marks.
    """
    text, around = ablation_markdown(document), section_of(path, document["protocol"]["model"])
    write_plots(document, path)
    write_whole(text if around is None else f"{around[0]}{text}{around[1]}", path)


def section_of(path: Path, model: str) -> tuple[str, str] | None:
    """Reads what a file has before and after the tables of ``model``, marks included; None without a file.

    Raises:
        ValueError: The file lacks the marks.
    """
    if not path.exists():
        return None
    begin, end = marks(model)
    before, opened, rest = path.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise ValueError(
            f"{path} has no section to write into; put these two lines where the tables are to be: {begin} {end}"
        )
    return f"{before}{begin}\n", f"{end}{after}"


def marks(model: str) -> tuple[str, str]:
    """Returns the lines around the section of a model's ablation in a longer file."""
    return f"<!-- bitbrush ablate {model} -->", f"<!-- end of bitbrush ablate {model} -->"


def _lines(document: Document) -> Iterator[str]:
    yield from ("```sh", document["command"], "```", "", protocol_text(document), "")
    if missing := missing_text(document):
        yield from (f"{headline(document)}. {missing}", "")
    if not document["cells"]:
        return
    for name, plot in quality_plots(document).items():
        yield from (f"![{plot.title}]({name})", "")
    if steps := [f"[{plot.title.rpartition(' ')[2]}]({name})" for name, plot in step_plots(document).items()]:
        yield from (f"Error over the steps: {', '.join(steps)}.", "")
    for table in bits_tables(document):
        yield from (f"**{table.name}**", "", *_table(table), "")
        for problem in table.problems:
            yield from (f"Failed. {problem}", "")
    for line in fallback_lines(document):
        yield from (f"Not in integers: {line}", "")
    tables = list(set_tables(document))
    if tables:
        yield from ("By prompt set:", "")
    for table in tables:
        yield from (f"**{table.name}**", "", *_table(table), "")


def _table(table: Table) -> Iterator[str]:
    yield _row(["recipe", *table.columns])
    yield "|" + "---|" * (len(table.columns) + 1)
    for row in table.rows:
        yield _row(
            [row.name, *(f"{one[0]} ({one[1]})" if one and one[1] else one[0] if one else "" for one in row.cells)]
        )


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
