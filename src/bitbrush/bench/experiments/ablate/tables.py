"""The tables of an ablation, of what ``results.json`` holds: the page and the Markdown show the same."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitbrush.bench.experiments.ablate.figures import TOGETHER
from bitbrush.bench.experiments.results import interval_of
from bitbrush.bench.pages.number_format import format_interval, format_number

Document = Mapping[str, Any]
Text = tuple[str, str]
"""A figure and, smaller, what belongs to it: its interval as a rule."""


@dataclass(frozen=True)
class Row:
    name: str
    cells: Sequence[Text | None]


@dataclass(frozen=True)
class Table:
    """``columns``: a heading for each cell of a row, the name apart; ``problems``: of recipes that failed."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Row]
    problems: Sequence[str] = ()


def bits_tables(document: Document) -> Iterator[Table]:
    """For every bit setting its recipes, highest PSNR first, then full precision from another seed."""
    against = document["against"]
    columns = [
        "PSNR, dB",
        "median",
        "latent MSE",
        "geometric mean",
        f"PSNR less {against}'s",
        f"MSE, times {against}'s",
        f"geometric, times {against}'s",
        "CLIP score",
        "CLIP score change",
        "weight, activation bits",
        "layers in integers",
        "quantized in",
    ]
    for bits in document["bits"]:
        cells = [one for one in document["cells"] if one["bits"] == bits]
        rows = [Row(one["recipe"], [*_quality(one, against), *_costs(one)]) for one in ranked(cells)]
        floor = document["floor"]
        rows.append(Row(floor["name"], [*_quality({**floor, "recipe": ""}, against), ("32, 32", ""), None, None]))
        problems = [f"{one['recipe']}: {one['problem']}" for one in cells if one["problem"]]
        if cells:
            yield Table(bits, columns, rows, problems)


def set_tables(document: Document) -> Iterator[Table]:
    """The same by prompt set; none where there is one set."""
    sets = [one["name"] for one in document["protocol"]["prompt_sets"]]
    if len(sets) < 2:
        return
    columns = [f"{metric} {name}" for metric in ("PSNR", "latent MSE") for name in sets] + [
        "PSNR, unseen style less seen"
    ]
    for bits in document["bits"]:
        cells = ranked([one for one in document["cells"] if one["bits"] == bits])
        rows = [
            Row(one["recipe"], list(_by_set(one, sets)))
            for one in [*cells, {**document["floor"], "recipe": "another seed"}]
        ]
        if cells:
            yield Table(bits, columns, rows)


def ranked(cells: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that were measured, highest PSNR first."""
    measured = [one for one in cells if one["problem"] is None]
    return sorted(measured, key=lambda one: -of_all(one)["psnr"]["mean"])


def of_all(cell: Mapping[str, Any]) -> Mapping[str, Any]:
    """Its figures over the pictures of all prompt sets."""
    figures: Mapping[str, Mapping[str, Any]] = cell["figures"]
    return figures[TOGETHER] if TOGETHER in figures else next(iter(figures.values()))


def fallback_lines(document: Document) -> list[str]:
    """Why layers are not computed in integers, and of which recipes."""
    whose: dict[str, list[str]] = {}
    for one in document["cells"]:
        for how, names in () if one["problem"] else one["fallbacks"].items():
            whose.setdefault(f"as {how}: {', '.join(names)}", []).append(f"{one['bits']} {one['recipe']}")
    return [f"{how} ({', '.join(recipes)})" for how, recipes in whose.items()]


def interval_text(interval: Mapping[str, Any] | None) -> Text | None:
    return None if interval is None else format_interval(interval_of(interval))


def _ratio_text(ratio: Mapping[str, Any] | None) -> Text | None:
    """Two digits of each: what is far above 1 at one end is to be read at the other."""
    if ratio is None:
        return None
    mean, low, high = (format_number(ratio[name], digits=2) for name in ("mean", "low", "high"))
    return mean, f"{low} to {high}"


def _quality(cell: Mapping[str, Any], against: str) -> list[Text | None]:
    figures = of_all(cell)
    found = [interval_text(figures[name]) for name in ("psnr", "psnr_median", "latent_mse", "latent_mse_geometric")]
    compared: Mapping[str, Any] = cell["against"].get(TOGETHER) or next(iter(cell["against"].values()), {})
    if cell["recipe"] == against:
        found += [("0", ""), ("1", ""), ("1", "")]
    else:
        found.append(interval_text(compared.get("psnr_difference")))
        found += [_ratio_text(compared.get(name)) for name in ("latent_mse_ratio", "geometric_ratio")]
    return [*found, *(interval_text(figures[name]) for name in ("clip_score", "clip_difference"))]


def _costs(cell: Mapping[str, Any]) -> list[Text | None]:
    others = sum(map(len, cell["fallbacks"].values()))
    return [
        (f"{cell['weight_bits']:.2f}, {cell['activation_bits']:.2f}", f"{cell['denoiser_mib']:.2f} MiB"),
        (f"{cell['int8_layers']} of {cell['int8_layers'] + others}", cell["runtime"].partition(":")[0]),
        (f"{cell['seconds']:.0f} s", f"{cell['denoiser_calls_per_batch']} calls"),
    ]


def _by_set(cell: Mapping[str, Any], sets: Sequence[str]) -> Iterator[Text | None]:
    for metric in ("psnr", "latent_mse"):
        for name in sets:
            yield interval_text(cell["figures"][name][metric])
    yield interval_text(cell["gap"])
