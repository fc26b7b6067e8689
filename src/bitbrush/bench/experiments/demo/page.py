"""Page of the demo: the default method beside round-to-nearest and full precision."""

from collections.abc import Iterator

import numpy as np

from bitbrush.artifact.sizes import MIB
from bitbrush.bench.experiments.demo.results import BASELINE, METHOD, OTHER_SEED, DemoRun
from bitbrush.bench.experiments.results import versions
from bitbrush.bench.metrics.counts import FEWEST_DECIDING
from bitbrush.bench.metrics.interval import bootstrap_difference, bootstrap_mean
from bitbrush.bench.metrics.latent_mse import geometric_means
from bitbrush.bench.metrics.paired import HEAVY_TAILED, LATENT_MSE, PSNR, paired_figures
from bitbrush.bench.pages.number_format import format_number
from bitbrush.bench.pages.page import (
    Card,
    Gallery,
    ImageGroup,
    ImageRow,
    Page,
    PlotSection,
    Row,
    Table,
    TableSection,
    Tile,
    interval_cell,
)
from bitbrush.bench.pages.plots import STEP_AXIS, Axis, LinePlot, Scale, Series
from bitbrush.bench.pages.prompt_sets import explained
from bitbrush.sources.prompts import DEFAULT_CALIBRATION_SET, Domain

COMMAND = "bitbrush demo"
FULL = "full precision"
_PLACES = ("lowest", "2nd lowest", "3rd lowest")
ROWS = len(_PLACES)
"""Number of usual and of worst pairs that are shown of each style."""
METHODS = (BASELINE, METHOD)

_MACHINES = (
    "Sums are added up in another order on another processor, so single images move. With instructions limited to "
    "AVX2, 24 images of one artifact by best kept 50.1 dB PSNR on average to those with all instructions, and 40.6 dB "
    "if the artifact was quantized anew as well. Compare means over many images between machines, not single ones."
)


def demo_page(run: DemoRun) -> Page:
    """Builds the page of a run."""
    recipe = run.quantized[METHOD].recipe
    return Page(
        title=f"bitbrush demo: {run.model} in {recipe.weights}-bit weights and {recipe.activations}-bit activations",
        verdict=_verdict(run),
        facts=dict(_facts(run)),
        command=COMMAND,
        about=[_about(run)],
        images_about=(
            f"Each row starts from the same noise: {FULL}, {BASELINE} (round-to-nearest with static ranges) and "
            f"{METHOD} (the default method)."
        ),
        galleries=[_gallery(run, style) for style in run.prompts],
        quality=PlotSection("Quality against size", [_size_plot(run)], _cards(run)),
        tables=[_table_section(run)],
        plots=PlotSection("Over the denoising steps", [_error_plot(run), _range_plot(run)]),
    )


def _verdict(run: DemoRun) -> str:
    gain = bootstrap_difference(run.all_pairs(BASELINE, PSNR), run.all_pairs(METHOD, PSNR))
    if gain.n < FEWEST_DECIDING:
        return f"{gain.n} images are too few to tell {METHOD} from round-to-nearest."
    if gain.low > 0:
        return f"{METHOD} stays {gain.mean:.1f} dB nearer to {FULL} than round-to-nearest."
    return f"{METHOD} is not measurably nearer to {FULL} than round-to-nearest ({gain.mean:+.1f} dB)."


def _about(run: DemoRun) -> str:
    baseline, method = run.all_pairs(BASELINE, PSNR), run.all_pairs(METHOD, PSNR)
    packed, checkpoint, float32 = _mib(run, METHOD)
    return (
        f"{method.mean():.1f} dB against {baseline.mean():.1f} dB PSNR over {len(method)} held-out prompts, in "
        f"{packed:.1f} MiB instead of the checkpoint's {checkpoint:.1f} ({float32:.1f} in float32)."
    )


def _gallery(run: DemoRun, style: str) -> Gallery:
    fidelity = run.metrics[METHOD][style][PSNR]
    worst = [int(index) for index in np.argsort(fidelity, kind="stable")[:ROWS]]
    usual = [_image_row(run, style, index) for index in range(min(ROWS, len(fidelity)))]
    groups = [
        ImageGroup("Usual pairs", "the first prompts, not chosen", usual),
        ImageGroup(
            "Worst pairs",
            f"lowest PSNR of {METHOD} among {len(fidelity)}",
            [_image_row(run, style, index, _PLACES[place]) for place, index in enumerate(worst)],
        ),
    ]
    return Gallery(style, explained(style, _domain(style)), groups)


def _domain(style: str) -> Domain:
    return Domain.CALIBRATION if style == DEFAULT_CALIBRATION_SET else Domain.UNSEEN


def _image_row(run: DemoRun, style: str, index: int, label: str = "") -> ImageRow:
    tiles = [Tile(FULL, run.reference[style].images[index])]
    for name in METHODS:
        decibels = run.metrics[name][style][PSNR][index]
        tiles.append(Tile(name, run.candidates[name][style].images[index], f"{decibels:.1f} dB"))
    return ImageRow(run.prompts[style][index], f"seed {run.seed}", tiles, label)


def _cards(run: DemoRun) -> list[Card]:
    _, checkpoint, float32 = _mib(run, METHOD)
    text = f"in its checkpoint; {format_number(float32, digits=3)} MiB in float32"
    cards = [Card(FULL, _size(checkpoint), [text], share=1)]
    for name in METHODS:
        quantization, packed = run.quantized[name], _mib(run, name)[0]
        share = packed / checkpoint
        lines = [
            f"{share:.2g} of the checkpoint's size",
            f"{format_number(quantization.recipe.weights, digits=3)}-bit weights, "
            f"{format_number(quantization.average_activation_bits, digits=3)}-bit activations",
        ]
        cards.append(Card(name, _size(packed), lines, share=share))
    return cards


def _size(mib: float) -> str:
    return f"{format_number(mib, digits=3)} MiB denoiser"


def _mib(run: DemoRun, name: str) -> tuple[float, float, float]:
    """Returns the denoiser's size in the artifact, in the checkpoint and in float32."""
    sizes = run.sizes[name]
    assert sizes.checkpoint is not None  # which an artifact made here records
    return sizes.packed / MIB, sizes.checkpoint / MIB, sizes.float32 / MIB


def _size_plot(run: DemoRun) -> LinePlot:
    """Plots the PSNR over all pairs; a line marks that of another seed."""
    checkpoint = _mib(run, METHOD)[1]
    series = []
    for name in METHODS:
        fidelity = bootstrap_mean(run.all_pairs(name, PSNR))
        point = ([value] for value in (_mib(run, name)[0], fidelity.mean, fidelity.low, fidelity.high))
        series.append(Series(name, *point))
    floor = bootstrap_mean(run.all_pairs(OTHER_SEED, PSNR))
    ends = [min(_mib(run, name)[0] for name in METHODS), checkpoint]
    series.append(Series(OTHER_SEED, ends, [floor.mean] * 2, [floor.low] * 2, [floor.high] * 2))
    caption = (
        f"Mean and 95 % interval. The line is {FULL} against itself from other noise, as far apart as two right images "
        "of one prompt are; it ends at the checkpoint's size. An image as low as this is another image."
    )
    axis = Axis("size of the denoiser's weights (MiB)", Scale.LOG)
    return LinePlot(f"{floor.n} images", series, axis, Axis(f"{PSNR} to {FULL}"), caption)


def _table_section(run: DemoRun) -> TableSection:
    tables = []
    for style, prompts in run.prompts.items():
        figures = {name: paired_figures(run.metrics[name][style]) for name in (BASELINE, METHOD, OTHER_SEED)}
        metrics = list(figures[METHOD])
        rows = [
            Row(name, [interval_cell(of_name[metric]) if metric in of_name else None for metric in metrics])
            for name, of_name in figures.items()
        ]
        about = f"{len(prompts)} images; {explained(style, _domain(style))}"
        tables.append(Table(style, metrics, rows, about))
    about = f"Distance to full precision, pair by pair: the mean, and below it its 95 % interval. {HEAVY_TAILED}"
    return TableSection("All figures", about, tables)


def _error_plot(run: DemoRun) -> LinePlot:
    series = []
    for name in METHODS:
        errors = run.error_by_step(name)
        intervals = geometric_means(errors)
        means, lows, highs = zip(*((one.mean, one.low, one.high) for one in intervals), strict=True)
        series.append(Series(name, list(range(len(means))), means, lows, highs))
    caption = (
        f"Distance of the latents from those of {FULL} after each denoiser call: geometric means with 95 % "
        f"intervals over {len(run.all_pairs(METHOD, PSNR))} prompts."
    )
    return LinePlot("Error of the latents", series, STEP_AXIS, Axis(f"{LATENT_MSE} to {FULL}", Scale.LOG), caption)


def _range_plot(run: DemoRun) -> LinePlot:
    """Plots the layer whose range changes most over the steps."""
    ranges = {
        layer.name: np.array([qparams.range for qparams in layer.schedule.qparams])
        for layer in run.quantized[METHOD].outcome.layers
    }
    name = max(ranges, key=lambda layer: np.ptp(ranges[layer], axis=1).max() / np.ptp(ranges[layer], axis=1).min())
    static = next(layer for layer in run.quantized[BASELINE].outcome.layers if layer.name == name)
    low, high = static.schedule.qparams[0].range
    steps = list(range(len(ranges[name])))
    series = [
        Series(f"{METHOD}, highest", steps, ranges[name][:, 1].tolist()),
        Series(f"{METHOD}, lowest", steps, ranges[name][:, 0].tolist()),
        Series(f"{BASELINE}, highest", steps, [high] * len(steps)),
        Series(f"{BASELINE}, lowest", steps, [low] * len(steps)),
    ]
    caption = (
        f"The input of {name}, the layer whose range changes most. One static range has to hold the values of every "
        f"step; {METHOD} has a range for each step."
    )
    return LinePlot("A layer's range", series, STEP_AXIS, Axis("value of the layer's input"), caption)


def _facts(run: DemoRun) -> Iterator[tuple[str, str]]:
    method = run.quantized[METHOD]
    recipe = method.recipe
    yield "Plan", f"{type(method.source.scheduler).__name__}, {recipe.steps} steps, guidance {recipe.guidance_scale:g}"
    yield "Calibration", f"{recipe.num_prompts} prompts of style {DEFAULT_CALIBRATION_SET}"
    pairs = ", ".join(f"{len(prompts)} of style {style}" for style, prompts in run.prompts.items())
    yield "Held out", f"{pairs}; no combination of objects, colour and position is in both"
    yield "Activations", f"relaxed {recipe.relax or 'nowhere'}: {method.average_activation_bits:.2f} bits on average"
    yield "Another machine", _MACHINES
    for name in METHODS:
        costs = run.quantized[name].costs
        yield (
            f"Cost of {name}",
            "\n".join(f"{stage.replace('_', ' ')} {cost.seconds:.0f} s" for stage, cost in costs.items()),
        )
    peak = max(cost.peak_mib for quantization in run.quantized.values() for cost in quantization.costs.values())
    yield "Peak memory", f"{peak:.0f} MiB while quantizing"
    yield "Versions", ", ".join(f"{name} {number}" for name, number in versions().items())
