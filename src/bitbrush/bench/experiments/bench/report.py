"""``report.html``: what a benchmark found, for people; one file that asks the network for nothing."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bitbrush.bench.experiments.bench.figures import BenchFigures, EntryFigures, higher_is_better
from bitbrush.bench.experiments.bench.qdiffbench import Pictures
from bitbrush.bench.experiments.bench.verdict import Level
from bitbrush.bench.experiments.demo.page import png_uri
from bitbrush.bench.metrics.interval import Interval
from bitbrush.bench.metrics.paired import PSNR, SSIM
from bitbrush.bench.pages.number_format import format_interval, format_number
from bitbrush.bench.pages.plots import (
    MOST_SERIES,
    STEP_AXIS,
    Axis,
    LinePlot,
    Scale,
    Series,
)
from bitbrush.bench.pages.templating import environment

FIRST = 8
"""So many pairs of every set are shown as they are listed, beside the worst ones."""
WIDEST = 128
"""Pictures of more pixels are shown smaller, and as WebP: a page with hundreds of PNG files would not open."""
SHOWN = 384


@dataclass(frozen=True)
class _Card:
    name: str
    level: str
    size: str
    share: float
    reasons: Sequence[str]


@dataclass(frozen=True)
class _Row:
    metric: str
    better: str
    cells: Sequence[tuple[str, str] | None]


@dataclass(frozen=True)
class _Table:
    name: str
    about: str
    columns: Sequence[str]
    rows: Sequence[_Row]


@dataclass(frozen=True)
class _Pair:
    candidate: str
    set: str
    place: int
    prompt: str
    about: str
    ssim: float
    first: bool
    worst: bool
    defect: str
    reference: str
    picture: str


def render_report(document: Mapping[str, Any], figures: BenchFigures, pictures: Pictures) -> str:
    """The page as HTML, of the document that ``results.json`` holds and of the pictures it was made of."""
    measured = [one for one in figures.candidates if one.sets]
    pairs = list(_pairs(measured, pictures))
    first = next(iter(pictures.reference.pictures.values())).image(0)
    small = max(first.shape[:2]) <= WIDEST
    report = {
        "title": f"QDiffBench: {document['reference']['source']}",
        "headline": _headline(figures.candidates),
        "cards": [_card(one, document) for one in figures.candidates],
        "rule": document["protocol"]["verdict_rule"],
        "tables": list(_tables(document, figures)),
        "absent": document["absent"],
        "dot_plots": list(_dot_plots(document, measured)),
        "plots": list(_plots(document, figures, measured)),
        "pairs": pairs,
        "shown_candidates": [one.entry.name for one in measured],
        "shown_sets": list(pictures.reference.pictures),
        "small_pictures": small,
        "pictures_note": "" if small else f"Shown at {SHOWN} pixels; the figures are of the PNG files themselves.",
        "facts": dict(_facts(document)),
        "command": document["command"],
    }
    return environment().get_template("bench.html.j2").render(report=report)


_SIZES = ("denoiser_mib", "float32_mib")
_SENTENCES = {
    Level.INDISTINGUISHABLE: "{} {} indistinguishable from full precision",
    Level.TOO_FEW: "{} {} not graded, for the images are too few to tell",
    None: "{} {} not measured",
}


def _headline(candidates: Sequence[EntryFigures]) -> str:
    by_level: dict[Level | None, list[str]] = {}
    for one in candidates:
        by_level.setdefault(one.verdict.level if one.verdict else None, []).append(one.entry.name)
    parts = []
    for level, names in by_level.items():
        joined = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
        sentence = _SENTENCES.get(level, f"{{}} {{}} {level} than full precision")
        parts.append(sentence.format(joined, "is" if len(names) == 1 else "are"))
    return "; ".join(parts) + "."


def _card(one: EntryFigures, document: Mapping[str, Any]) -> _Card:
    subject = one.entry.subject
    if one.verdict is None or subject is None:
        return _Card(one.entry.name, "not measured", "", 0.0, [one.entry.problem or ""])
    full = document["reference"]["denoiser_mib"]
    size = (
        f"{format_number(subject.denoiser_mib, digits=3)} MiB denoiser, {subject.denoiser_mib / full:.2f} of the "
        f"checkpoint's ({format_number(subject.float32_mib, digits=3)} MiB in float32), "
        f"{format_number(subject.weight_bits, digits=3)}-bit weights, "
        f"{format_number(subject.activation_bits, digits=3)}-bit activations"
    )
    return _Card(
        one.entry.name,
        one.verdict.level.value,
        size,
        subject.denoiser_mib / full,
        [*one.verdict.reasons, *subject.notes],
    )


def _tables(document: Mapping[str, Any], figures: BenchFigures) -> Iterator[_Table]:
    """All prompt sets together, then one by one: metrics down, full precision, its floor and the candidates across."""
    measured = [one for one in figures.candidates if one.sets]
    columns = ["full precision", figures.floor.entry.name, *(one.entry.name for one in measured)]
    yield _Table("sizes, costs, execution", "", columns, list(_costs(document, measured)))
    seeds, sets = len(document["protocol"]["seeds"]), document["protocol"]["prompt_sets"]
    if figures.floor.together:
        sources = [figures.together, figures.floor.together, *(one.together for one in measured)]
        count = sum(told["prompts"] for told in sets) * seeds
        yield _Table("all prompt sets together", f"{count} pictures", columns, _rows(sources))
    for told in sets:
        name = told["name"]
        sources = [figures.reference[name].figures, figures.floor.sets[name].figures]
        sources += [one.sets[name].figures for one in measured]
        yield _Table(name, f"{told['domain']}, {told['prompts'] * seeds} pictures", columns, _rows(sources))


def _costs(document: Mapping[str, Any], measured: Sequence[EntryFigures]) -> Iterator[_Row]:
    """What each pipeline takes; the floor is full precision again."""
    candidates = {told["name"]: told for told in document["candidates"]}
    told = [document["reference"]] * 2 + [candidates[one.entry.name] for one in measured]
    facts = {
        "denoiser's files, MiB": "denoiser_mib",
        "in float32, MiB": "float32_mib",
        "weight bits": "weight_bits",
        "activation bits": "activation_bits",
    }
    for name, key in facts.items():
        yield _Row(name, "↓", [(format_number(one[key], digits=3), "") for one in told])
    yield _Row("runtime", "", [(one["runtime"].partition(":")[0], "") for one in told])
    yield _Row("layers in 8-bit integers", "", [(str(one["int8_layers"]), "") for one in told])
    if any(one["fallbacks"] for one in told):
        counts = [sum(map(len, one["fallbacks"].values())) for one in told]
        yield _Row("quantized, yet in floating point", "↓", [(str(count), "") for count in counts])
    calls = format_number(document["protocol"]["denoiser_calls"], digits=3)
    yield _Row("denoiser calls a picture", "↓", [(calls, "")] * len(told))


def _rows(sources: Sequence[Mapping[str, Interval]]) -> list[_Row]:
    metrics = dict.fromkeys(metric for source in sources[1:] for metric in source)
    return [
        _Row(metric, _better(metric), [format_interval(s[metric]) if metric in s else None for s in sources])
        for metric in metrics
    ]


def _better(metric: str) -> str:
    return "↑" if higher_is_better(metric) else "↓"


def _dot_plots(document: Mapping[str, Any], measured: Sequence[EntryFigures]) -> Iterator[dict[str, Any]]:
    """Interval plots of the paired metrics that tell most, a line per candidate and prompt set."""
    domains = {told["name"]: told["domain"] for told in document["protocol"]["prompt_sets"]}
    metrics = list(dict.fromkeys(metric for one in measured for metric in one.gaps)) or [PSNR, SSIM]
    for metric in metrics if measured else []:
        intervals = {
            (one.entry.name, name): of_set.figures[metric] for one in measured for name, of_set in one.sets.items()
        }
        low = min(interval.low for interval in intervals.values())
        high = max(interval.high for interval in intervals.values())
        if low == high:
            continue
        yield {
            "metric": metric,
            "better": _better(metric),
            "left": format_number(low, digits=3),
            "right": format_number(high, digits=3),
            "lines": [_dots(*key, interval, domains, (low, high)) for key, interval in intervals.items()],
            "gaps": [f"{one.entry.name}: {_gap(one.gaps[metric])}" for one in measured if metric in one.gaps],
        }


def _dots(
    candidate: str, name: str, interval: Interval, domains: Mapping[str, str], limits: tuple[float, float]
) -> dict[str, Any]:
    low, high = limits

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    return {
        "name": candidate,
        "set": name,
        "style": "seen" if domains[name].startswith("calibration") else "unseen",
        "low": place(interval.low),
        "width": round(place(interval.high) - place(interval.low), 2),
        "at": place(interval.mean),
        "text": format_interval(interval)[0],
    }


def _gap(gap: Interval) -> str:
    mean, between = format_interval(gap)
    separated = "" if gap.low > 0 or gap.high < 0 else ", which holds 0"
    return f"unseen minus calibration style {mean} ({between}{separated})"


def _plots(document: Mapping[str, Any], figures: BenchFigures, measured: Sequence[EntryFigures]) -> Iterator[LinePlot]:
    if measured:
        for name in figures.reference:
            yield _size_plot(name, document, measured)
    for name in figures.reference:
        series = [
            Series(
                one.entry.name,
                list(range(len(steps))),
                [step.mean for step in steps],
                [max(step.low, 1e-12) for step in steps],
                [step.high for step in steps],
            )
            for one in (*measured, figures.floor)
            if (steps := one.sets[name].latent_mse) and all(step.mean > 0 for step in steps)
        ]
        if series:
            axis = Axis("latent MSE to full precision", Scale.LOG)
            pairs = next(iter(measured or [figures.floor])).sets[name].latent_mse[0].n
            caption = (
                f"After each denoiser call, with 95 % intervals over the {pairs} pictures that kept their latents."
            )
            title = f"Error over the steps, {name}"
            yield LinePlot(title, series[:MOST_SERIES], STEP_AXIS, axis, caption + _left_out(len(series)))


def _size_plot(name: str, document: Mapping[str, Any], measured: Sequence[EntryFigures]) -> LinePlot:
    series = []
    for one in measured[:MOST_SERIES]:
        interval, subject = one.sets[name].figures[PSNR], one.entry.subject
        assert subject is not None
        point = ([value] for value in (subject.denoiser_mib, interval.mean, interval.low, interval.high))
        series.append(Series(one.entry.name, *point))
    checkpoint, float32 = (format_number(document["reference"][key], digits=3) for key in _SIZES)
    caption = f"Mean and 95 % interval. The checkpoint has {checkpoint} MiB, which are {float32} in float32."
    size = Axis("size of the denoiser's weights (MiB)", Scale.LOG)
    title, fidelity = f"Quality against size, {name}", Axis(f"{PSNR} to full precision")
    return LinePlot(title, series, size, fidelity, caption + _left_out(len(measured)))


def _left_out(count: int) -> str:
    return f" The first {MOST_SERIES} of {count} are shown." if count > MOST_SERIES else ""


def _pairs(measured: Sequence[EntryFigures], pictures: Pictures) -> Iterator[_Pair]:
    """The first of every set and the worst of every candidate."""
    for one in measured:
        for name, own in one.sets.items():
            reference, candidate = pictures.reference.pictures[name], one.entry.pictures[name]
            first = range(min(FIRST, len(reference.prompts)))
            for index in sorted({*first, *own.worst, *own.defects}):
                decibels, similarity = (float(own.values[metric][index]) for metric in (PSNR, SSIM))
                yield _Pair(
                    candidate=one.entry.name,
                    set=name,
                    place=index,
                    prompt=reference.prompts[index],
                    about=f"{name} {index}, seed {reference.seed(index)} · {decibels:.1f} dB · SSIM {similarity:.3f}",
                    ssim=round(similarity, 5),
                    first=index in first,
                    worst=index in own.worst or index in own.defects,
                    defect=own.defects.get(index, ""),
                    reference=picture_uri(reference.image(index)),
                    picture=picture_uri(candidate.image(index)),
                )


def picture_uri(image: NDArray[np.uint8]) -> str:
    """The image `(H, W, 3)` as a `data:` URI: every pixel as PNG up to WIDEST, else smaller and as WebP."""
    if max(image.shape[:2]) <= WIDEST:
        return png_uri(image)
    shown = Image.fromarray(image)
    shown.thumbnail((SHOWN, SHOWN))
    buffer = io.BytesIO()
    shown.save(buffer, format="WEBP", quality=88)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _facts(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    protocol = document["protocol"]
    steps = f"{protocol['steps']} steps ({protocol['denoiser_calls']} denoiser calls)"
    yield "Plan", f"{protocol['scheduler']}, {steps}, guidance {protocol['guidance_scale']:g}"
    yield "Seeds", f"{_listed(protocol['seeds'])}; of the floor {_listed(protocol['floor_seeds'])}"
    sets = protocol["prompt_sets"]
    lines = [f"{one['name']}: {one['prompts']} of {one['of']} prompts, {one['domain']}" for one in sets]
    yield "Prompt sets", "\n".join(lines)
    yield (
        "Noise",
        "Each picture's own, from seed and prompt; batch size, order and number of processes do not change it.",
    )
    for subject in (document["reference"], *document["candidates"]):
        if "operators" in subject:
            lines = [f"{count} × {what}" for what, count in subject["operators"].items()]
            told = [f"{subject['source']}, sha256 {subject['digest'][:16]}", *lines]
            yield f"Layers of {subject['name']}", "\n".join(told)
            yield f"Execution of {subject['name']}", "\n".join(_execution(subject))
    yield "In floating point everywhere", "attention's matrix products, norms, activations, text encoder, VAE"
    for network in document["networks"]:
        yield f"Network: {network['use']}", f"{network['name']}, sha256 {network['sha256'][:16]}"
    yield "Versions", ", ".join(f"{name} {number}" for name, number in document["versions"].items())


def _execution(subject: Mapping[str, Any]) -> Iterator[str]:
    yield subject["runtime"]
    if subject["int8_layers"]:
        yield f"{subject['int8_layers']} layers really in 8-bit integers"
    for how, names in subject["fallbacks"].items():
        yield f"{len(names)} as {how}: {', '.join(names)}"


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
