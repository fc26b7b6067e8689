"""Tables of an ablation, made from its results document; the page and the Markdown show the same."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitbrush.bench.experiments.ablate.figures import TOGETHER
from bitbrush.bench.experiments.results import interval_of
from bitbrush.bench.pages.number_format import format_interval, format_number

Document = Mapping[str, Any]
Text = tuple[str, str]
"""Figure and a smaller addition, usually its interval."""


@dataclass(frozen=True)
class Row:
    """Row of a recipe."""

    name: str
    cells: Sequence[Text | None]


@dataclass(frozen=True)
class Table:
    """Table with a heading for each cell of a row, without the name; ``problems`` are those of failed recipes."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Row]
    problems: Sequence[str] = ()


def bits_tables(document: Document) -> Iterator[Table]:
    """Yields a table for every bit setting: recipes, highest PSNR first, then full precision from another seed."""
    against = document["against"]
    columns = [
        "PSNR, dB",
        "median",
        "latent MSE, geometric mean",
        "latent MSE, mean",
        f"PSNR less {against}'s",
        f"geometric mean, times {against}'s",
        f"mean, times {against}'s",
        "CLIP score",
        "CLIP score change",
        "weight, activation bits",
        "layers in integers",
        "quantized in",
    ]
    for bits in document["bits"]:
        cells = [cell for cell in document["cells"] if cell["bits"] == bits]
        rows = [Row(cell["recipe"], [*_quality(cell, against), *_costs(cell)]) for cell in ranked(cells)]
        floor = document["floor"]
        rows.append(Row(floor["name"], [*_quality({**floor, "recipe": ""}, against), ("32, 32", ""), None, None]))
        problems = [f"{cell['recipe']}: {cell['problem']}" for cell in cells if cell["problem"]]
        if cells:
            yield Table(bits, columns, rows, problems)


def set_tables(document: Document) -> Iterator[Table]:
    """Yields the same tables by prompt set, if there are several sets."""
    sets = [prompts["name"] for prompts in document["protocol"]["prompt_sets"]]
    if len(sets) < 2:
        return
    columns = [f"{metric} {name}" for metric in ("PSNR", "latent MSE, geometric mean") for name in sets] + [
        "PSNR, unseen style less seen"
    ]
    for bits in document["bits"]:
        cells = ranked([cell for cell in document["cells"] if cell["bits"] == bits])
        rows = [
            Row(cell["recipe"], list(_by_set(cell, sets)))
            for cell in [*cells, {**document["floor"], "recipe": "another seed"}]
        ]
        if cells:
            yield Table(bits, columns, rows)


def ranked(cells: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Lists the measured cells, highest PSNR first."""
    measured = [cell for cell in cells if cell["problem"] is None]
    return sorted(measured, key=lambda cell: -of_all(cell)["psnr"]["mean"])


def of_all(cell: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the figures of a cell over the images of all prompt sets."""
    figures: Mapping[str, Mapping[str, Any]] = cell["figures"]
    return figures[TOGETHER] if TOGETHER in figures else next(iter(figures.values()))


def fallback_lines(document: Document) -> list[str]:
    """Lists why layers are not computed in integers, and in which recipes."""
    recipes: dict[str, list[str]] = {}
    for cell in document["cells"]:
        for how, names in () if cell["problem"] else cell["fallbacks"].items():
            recipes.setdefault(f"as {how}: {', '.join(names)}", []).append(f"{cell['bits']} {cell['recipe']}")
    return [f"{how} ({', '.join(names)})" for how, names in recipes.items()]


def interval_text(interval: Mapping[str, Any] | None) -> Text | None:
    """Formats an interval of the document."""
    return None if interval is None else format_interval(interval_of(interval))


def _ratio_text(ratio: Mapping[str, Any] | None) -> Text | None:
    """Formats a ratio with two digits of each number, since its ends may differ by orders of magnitude."""
    if ratio is None:
        return None
    mean, low, high = (format_number(ratio[name], digits=2) for name in ("mean", "low", "high"))
    return mean, f"{low} to {high}"


def _quality(cell: Mapping[str, Any], against: str) -> list[Text | None]:
    figures = of_all(cell)
    texts = [interval_text(figures[name]) for name in ("psnr", "psnr_median", "latent_mse_geometric", "latent_mse")]
    compared: Mapping[str, Any] = cell["against"].get(TOGETHER) or next(iter(cell["against"].values()), {})
    if cell["recipe"] == against:
        texts += [("0", ""), ("1", ""), ("1", "")]
    else:
        texts.append(interval_text(compared.get("psnr_difference")))
        texts += [_ratio_text(compared.get(name)) for name in ("geometric_ratio", "latent_mse_ratio")]
    return [*texts, *(interval_text(figures[name]) for name in ("clip_score", "clip_difference"))]


def _costs(cell: Mapping[str, Any]) -> list[Text | None]:
    others = sum(map(len, cell["fallbacks"].values()))
    return [
        (f"{cell['weight_bits']:.2f}, {cell['activation_bits']:.2f}", f"{cell['denoiser_mib']:.2f} MiB"),
        (f"{cell['int8_layers']} of {cell['int8_layers'] + others}", cell["runtime"].partition(":")[0]),
        (f"{cell['seconds']:.0f} s", f"{cell['denoiser_calls_per_batch']} calls"),
    ]


def _by_set(cell: Mapping[str, Any], sets: Sequence[str]) -> Iterator[Text | None]:
    for metric in ("psnr", "latent_mse_geometric"):
        for name in sets:
            yield interval_text(cell["figures"][name][metric])
    yield interval_text(cell["gap"])
