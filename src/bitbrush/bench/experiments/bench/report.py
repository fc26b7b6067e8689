"""Page of a benchmark: verdicts, usual and worst pairs, quality against size, all figures."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bitbrush.bench.experiments.bench.figures import BenchFigures, EntryFigures, higher_is_better
from bitbrush.bench.experiments.bench.gates import standing
from bitbrush.bench.experiments.bench.power import FULL, power_lines
from bitbrush.bench.experiments.bench.qdiffbench import GeneratedImages
from bitbrush.bench.experiments.bench.verdict import Level
from bitbrush.bench.metrics.interval import Interval
from bitbrush.bench.metrics.paired import HEAVY_TAILED, LATENT_MSE, PSNR, SSIM
from bitbrush.bench.pages.images import size_note
from bitbrush.bench.pages.number_format import format_number
from bitbrush.bench.pages.page import (
    Card,
    Cell,
    Gallery,
    ImageGroup,
    ImageRow,
    Page,
    PlotSection,
    Row,
    Table,
    TableSection,
    Tile,
    Tone,
    interval_cell,
    render_page,
)
from bitbrush.bench.pages.plots import MOST_SERIES, STEP_AXIS, Axis, LinePlot, Scale, Series
from bitbrush.bench.pages.prompt_sets import explained

USUAL = 8
"""Number of pairs of every prompt set that are shown in the order of the prompts, beside the worst ones."""
GATE_STRENGTH = 25
"""Percent of a gate's colour."""

_TONES = {
    Level.INDISTINGUISHABLE: Tone.GOOD,
    Level.AT_MOST_SLIGHTLY_WORSE: Tone.FAIR,
    Level.SLIGHTLY_WORSE: Tone.FAIR,
    Level.AT_LEAST_SLIGHTLY_WORSE: Tone.BAD,
    Level.CLEARLY_WORSE: Tone.BAD,
    Level.TOO_FEW: Tone.NEUTRAL,
}
_SENTENCES = {
    Level.INDISTINGUISHABLE: "{} {} indistinguishable from full precision",
    Level.TOO_FEW: "{} {} not graded, for the images are too few to tell",
    None: "{} {} not measured",
}
_FIGURES_ABOUT = (
    "Mean, and below it its 95 % interval. Another seed: full precision against itself from other noise, as far apart "
    "as two right images of one prompt are, and the floor of the distances between sets at this number of images. "
    f"{HEAVY_TAILED}"
)


def render_report(document: Mapping[str, Any], figures: BenchFigures, generated: GeneratedImages) -> str:
    """Renders the page as HTML.

    Args:
        document: Content of ``results.json``.
        figures: Figures that it was made of.
        generated: Images that they were computed from.
    """
    measured = [one for one in figures.candidates if one.sets]
    first_image = next(iter(generated.reference.images.values())).image(0)
    page = Page(
        title=f"QDiffBench: {document['reference']['source']}",
        verdict=_verdict(figures.candidates),
        facts=dict(_facts(document)),
        command=document["command"],
        warnings=list(_gate_warnings(document)),
        images_about=f"Each row starts from the same noise. {size_note(first_image)}".strip(),
        galleries=list(_galleries(document, measured, generated)) if measured else [],
        quality=_quality(document, figures, measured),
        tables=[*_gates(document), _table_section(document, figures, measured)],
        plots=PlotSection("Error over the steps", list(_step_plots(figures, measured))),
    )
    return render_page(page)


def _gates(document: Mapping[str, Any]) -> Iterator[TableSection]:
    """Yields the table of gates, if there are any: a row for each gate and prompt set, candidates across."""
    results = {(one["gate"], one["prompt_set"], one["candidate"]): one for one in document["gates"]}
    if not results:
        return
    names = list(dict.fromkeys(candidate for _, _, candidate in results))
    rows = [
        Row(f"{gate}, {prompt_set}", [_gate(results[gate, prompt_set, name]) for name in names])
        for gate, prompt_set in dict.fromkeys((gate, prompt_set) for gate, prompt_set, _ in results)
    ]
    about = "Bounds that every pair keeps, or the mean or median of a prompt set's pairs. Pairs are in results.json."
    yield TableSection("Gates", about, [Table("", names, rows, corner="gate")])


def _gate(result: Mapping[str, Any]) -> Cell:
    tone = Tone.GOOD if result["passed"] else Tone.BAD
    return Cell("holds" if result["passed"] else "fails", standing(result).replace(", ", "\n"), tone, GATE_STRENGTH)


def _gate_warnings(document: Mapping[str, Any]) -> Iterator[str]:
    failing = dict.fromkeys(result["candidate"] for result in document["gates"] if not result["passed"])
    if failing:
        yield f"Gates do not hold for {', '.join(failing)}."


def _verdict(candidates: Sequence[EntryFigures]) -> str:
    by_level: dict[Level | None, list[str]] = {}
    for candidate in candidates:
        level = candidate.verdict.level if candidate.verdict else None
        by_level.setdefault(level, []).append(candidate.entry.name)
    parts = []
    for level, names in by_level.items():
        joined = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
        sentence = _SENTENCES.get(level, f"{{}} {{}} {level} than full precision")
        parts.append(sentence.format(joined, "is" if len(names) == 1 else "are"))
    return "; ".join(parts) + "."


def _galleries(
    document: Mapping[str, Any], measured: Sequence[EntryFigures], generated: GeneratedImages
) -> Iterator[Gallery]:
    for prompt_set in document["protocol"]["prompt_sets"]:
        rows = _Rows(prompt_set["name"], measured, generated)
        groups = [
            ImageGroup("Usual pairs", "the first prompts, not chosen", list(rows.usual())),
            ImageGroup("Worst pairs", "the lowest SSIM of each candidate, and broken images", list(rows.worst())),
        ]
        yield Gallery(prompt_set["name"], explained(prompt_set["name"], prompt_set["domain"]), groups)


class _Rows:
    """Rows of images of one prompt set."""

    def __init__(self, name: str, measured: Sequence[EntryFigures], generated: GeneratedImages) -> None:
        self._name, self._measured = name, measured
        self._reference = generated.reference.images[name]

    def usual(self) -> Iterator[ImageRow]:
        for index in range(min(USUAL, len(self._reference.prompts))):
            yield self._row(index)

    def worst(self) -> Iterator[ImageRow]:
        """Yields each pair that is among the worst of a candidate once, the lowest SSIM first."""
        labels: dict[int, list[str]] = {}
        for candidate in self._measured:
            figures = candidate.sets[self._name]
            for index in dict.fromkeys((*figures.defects, *figures.worst)):
                labels.setdefault(index, []).append(candidate.entry.name)
        for index in sorted(labels, key=lambda index: min(self._similarities(index, labels[index]))):
            yield self._row(index, f"worst of {', '.join(labels[index])}")

    def _similarities(self, index: int, names: Sequence[str]) -> list[float]:
        return [
            float(candidate.sets[self._name].values[SSIM][index])
            for candidate in self._measured
            if candidate.entry.name in names
        ]

    def _row(self, index: int, label: str = "") -> ImageRow:
        tiles = [Tile(FULL, self._reference.image(index))]
        for candidate in self._measured:
            figures = candidate.sets[self._name]
            decibels, similarity = (float(figures.values[metric][index]) for metric in (PSNR, SSIM))
            image = candidate.entry.images[self._name].image(index)
            note = f"{decibels:.1f} dB · SSIM {similarity:.3f}"
            tiles.append(Tile(candidate.entry.name, image, note, figures.defects.get(index, "")))
        note = f"{self._name} {index}, seed {self._reference.seed(index)}"
        return ImageRow(self._reference.prompts[index], note, tiles, label)


def _quality(document: Mapping[str, Any], figures: BenchFigures, measured: Sequence[EntryFigures]) -> PlotSection:
    cards = [_card(candidate, document) for candidate in figures.candidates]
    plots = list(_size_plots(document, figures, measured))
    return PlotSection("Quality against size", plots, cards, document["protocol"]["verdict_rule"])


def _card(candidate: EntryFigures, document: Mapping[str, Any]) -> Card:
    subject = candidate.entry.subject
    if candidate.verdict is None or subject is None:
        return Card(candidate.entry.name, "not measured", [candidate.entry.problem or ""], Tone.BAD)
    share = subject.denoiser_mib / document["reference"]["denoiser_mib"]
    size = (
        f"{format_number(subject.denoiser_mib, digits=3)} MiB denoiser, {share:.2f} of the "
        f"checkpoint's ({format_number(subject.memory_mib, digits=3)} MiB in memory, "
        f"{format_number(subject.float32_mib, digits=3)} in float32), "
        f"{format_number(subject.weight_bits, digits=3)}-bit weights, "
        f"{format_number(subject.activation_bits, digits=3)}-bit activations"
    )
    level = candidate.verdict.level
    lines = [size, *candidate.verdict.reasons, *subject.notes]
    return Card(candidate.entry.name, level.value, lines, _TONES[level], share)


def _size_plots(
    document: Mapping[str, Any], figures: BenchFigures, measured: Sequence[EntryFigures]
) -> Iterator[LinePlot]:
    """Yields plots of the PSNR over all prompt sets, as many candidates in each as have colours of their own."""
    together = MOST_SERIES - 1
    for start in range(0, len(measured), together):
        yield _size_plot(document, figures, measured[start : start + together])


def _size_plot(document: Mapping[str, Any], figures: BenchFigures, measured: Sequence[EntryFigures]) -> LinePlot:
    """Plots the PSNR over all prompt sets; a line marks that of another seed."""
    series = []
    for candidate in measured:
        interval, subject = _over_all_sets(candidate)[PSNR], candidate.entry.subject
        assert subject is not None
        point = ([value] for value in (subject.denoiser_mib, interval.mean, interval.low, interval.high))
        series.append(Series(candidate.entry.name, *point))
    floor, checkpoint = _over_all_sets(figures.floor)[PSNR], document["reference"]["denoiser_mib"]
    ends = [min(checkpoint, *(x for one in series for x in one.x)), checkpoint]
    series.append(Series(figures.floor.entry.name, ends, [floor.mean] * 2, [floor.low] * 2, [floor.high] * 2))
    float32 = format_number(document["reference"]["float32_mib"], digits=3)
    caption = (
        f"Mean and 95 % interval. {figures.floor.entry.name.capitalize()} ends at the size of the checkpoint, "
        f"{format_number(checkpoint, digits=3)} MiB ({float32} in float32)."
    )
    size = Axis("size of the denoiser's weights (MiB)", Scale.LOG)
    return LinePlot(f"{floor.n} images of all prompt sets", series, size, Axis(f"{PSNR} to full precision"), caption)


def _over_all_sets(candidate: EntryFigures) -> Mapping[str, Interval]:
    return candidate.together or next(iter(candidate.sets.values())).figures


def _step_plots(figures: BenchFigures, measured: Sequence[EntryFigures]) -> Iterator[LinePlot]:
    for name in figures.reference:
        series = [
            _step_series(candidate.entry.name, candidate.sets[name].latent_mse)
            for candidate in (*measured, figures.floor)
            if candidate.sets[name].latent_mse and all(step.mean > 0 for step in candidate.sets[name].latent_mse)
        ]
        if series:
            pairs = next(iter(measured or [figures.floor])).sets[name].latent_mse[0].n
            caption = (
                f"Geometric mean after each denoiser call, with 95 % intervals over the {pairs} images that kept their "
                "latents."
            )
            axis = Axis(f"{LATENT_MSE} to full precision", Scale.LOG)
            yield LinePlot(name, series[:MOST_SERIES], STEP_AXIS, axis, caption + _left_out(len(series), MOST_SERIES))


def _step_series(name: str, intervals: Sequence[Interval]) -> Series:
    means, lows, highs = zip(*((one.mean, max(one.low, 1e-12), one.high) for one in intervals), strict=True)
    return Series(name, list(range(len(intervals))), means, lows, highs)


def _left_out(count: int, shown: int) -> str:
    return f" The first {shown} of {count} are shown." if count > shown else ""


def _table_section(
    document: Mapping[str, Any], figures: BenchFigures, measured: Sequence[EntryFigures]
) -> TableSection:
    tables = [*_figure_tables(document, figures, measured), *_gap_tables(measured)]
    notes = [*power_lines(figures.power), *(f"Not measured. {line}" for line in document["absent"])]
    return TableSection("All figures", _FIGURES_ABOUT, tables, notes)


def _figure_tables(
    document: Mapping[str, Any], figures: BenchFigures, measured: Sequence[EntryFigures]
) -> Iterator[Table]:
    """Yields all prompt sets together, then each: metrics down, full precision, its floor and candidates across."""
    columns = [FULL, figures.floor.entry.name, *(candidate.entry.name for candidate in measured)]
    seeds, prompt_sets = len(document["protocol"]["seeds"]), document["protocol"]["prompt_sets"]
    if figures.floor.together:
        sources = [figures.together, figures.floor.together, *(candidate.together for candidate in measured)]
        count = sum(prompt_set["prompts"] for prompt_set in prompt_sets) * seeds
        yield Table("all prompt sets together", columns, _rows(sources, document), f"{count} images")
    for prompt_set in prompt_sets:
        name = prompt_set["name"]
        sources = [figures.reference[name].figures, figures.floor.sets[name].figures]
        sources += [candidate.sets[name].figures for candidate in measured]
        about = f"{prompt_set['prompts'] * seeds} images; {explained(name, prompt_set['domain'])}"
        yield Table(name, columns, _rows(sources, document), about)
    yield Table("sizes, costs, execution", columns, list(_costs(document, measured)))


def _rows(sources: Sequence[Mapping[str, Interval]], document: Mapping[str, Any]) -> list[Row]:
    further = {metric["name"]: metric["higher_is_better"] for metric in document["metrics"]}
    metrics = dict.fromkeys(metric for source in sources[1:] for metric in source)
    return [
        Row(
            f"{metric} {'↑' if higher_is_better(metric, further) else '↓'}",
            [interval_cell(source[metric]) if metric in source else None for source in sources],
        )
        for metric in metrics
    ]


def _costs(document: Mapping[str, Any], measured: Sequence[EntryFigures]) -> Iterator[Row]:
    """Yields what each pipeline takes; the floor is full precision again."""
    candidates = {subject["name"]: subject for subject in document["candidates"]}
    subjects = [document["reference"]] * 2 + [candidates[candidate.entry.name] for candidate in measured]
    sizes = {
        "denoiser's files, MiB ↓": "denoiser_mib",
        "denoiser's tensors in memory, MiB ↓": "memory_mib",
        "parameters in float32, MiB ↓": "float32_mib",
        "weight bits ↓": "weight_bits",
        "activation bits ↓": "activation_bits",
    }
    for name, key in sizes.items():
        yield _text_row(name, [format_number(subject[key], digits=3) for subject in subjects])
    yield _text_row("runtime", [subject["runtime"].partition(":")[0] for subject in subjects])
    yield _text_row("layers in bitbrush's 8-bit kernels", [str(subject["int8_layers"]) for subject in subjects])
    if any(subject["fallbacks"] for subject in subjects):
        counts = [sum(map(len, subject["fallbacks"].values())) for subject in subjects]
        yield _text_row("quantized, yet in floating point ↓", [str(count) for count in counts])
    seconds = [subject["seconds_per_image"] for subject in subjects]
    yield _text_row("denoising, seconds per image ↓", [_digits(of_subject) for of_subject in seconds])
    calls = format_number(document["protocol"]["denoiser_calls"], digits=3)
    yield _text_row("denoiser calls per image ↓", [calls] * len(subjects))


def _digits(seconds: float | None) -> str:
    return "-" if seconds is None else format_number(seconds, digits=3)


def _text_row(name: str, texts: Sequence[str]) -> Row:
    return Row(name, [Cell(text) for text in texts])


def _gap_tables(measured: Sequence[EntryFigures]) -> Iterator[Table]:
    metrics = dict.fromkeys(metric for candidate in measured for metric in candidate.gaps)
    if not metrics:
        return
    rows = [
        Row(metric, [interval_cell(one.gaps[metric]) if metric in one.gaps else None for one in measured])
        for metric in metrics
    ]
    about = "Where the interval leaves out 0, quality depends on prompts looking like those of calibration."
    yield Table("unseen style minus calibration style", [candidate.entry.name for candidate in measured], rows, about)


def _facts(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    protocol = document["protocol"]
    steps = f"{protocol['steps']} steps ({protocol['denoiser_calls']} denoiser calls)"
    yield "Plan", f"{protocol['scheduler']}, {steps}, guidance {protocol['guidance_scale']:g}"
    seeds, floor_seeds = (", ".join(map(str, protocol[key])) for key in ("seeds", "floor_seeds"))
    yield "Seeds", f"{seeds}; of the floor {floor_seeds}"
    lines = [
        f"{prompt_set['name']}: {prompt_set['prompts']} of {prompt_set['of']} prompts; "
        f"{explained(prompt_set['name'], prompt_set['domain'])}"
        for prompt_set in protocol["prompt_sets"]
    ]
    yield "Prompt sets", "\n".join(lines)
    yield (
        "Noise",
        "Each image's own, from seed and prompt; batch size, order and number of processes do not change it.",
    )
    for subject in (document["reference"], *document["candidates"]):
        if "operators" in subject:
            layers = [f"{count} × {operator}" for operator, count in subject["operators"].items()]
            source = f"{subject['source']}, sha256 {subject['digest'][:16]}"
            yield f"Layers of {subject['name']}", "\n".join([source, *layers])
            yield f"Execution of {subject['name']}", "\n".join(_execution(subject))
    yield (
        "In floating point everywhere",
        "attention's matrix products, norms, activations; text encoder and VAE unless a note says otherwise",
    )
    for network in document["networks"]:
        yield f"Network: {network['use']}", f"{network['name']}, sha256 {network['sha256'][:16]}"
    yield "Versions", ", ".join(f"{name} {number}" for name, number in document["versions"].items())


def _execution(subject: Mapping[str, Any]) -> Iterator[str]:
    yield subject["runtime"]
    if subject["int8_layers"]:
        yield f"{subject['int8_layers']} layers really in 8-bit integers"
    for how, names in subject["fallbacks"].items():
        yield f"{len(names)} as {how}: {', '.join(names)}"
