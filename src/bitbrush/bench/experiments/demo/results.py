"""What the demo's page and its ``results.json`` say of the runs that were compared."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from bitbrush.artifact.sizes import MIB, DenoiserSizes
from bitbrush.bench.experiments.demo.page import CandidateRow, DemoPage, GalleryRow
from bitbrush.bench.experiments.results import results_document, results_text
from bitbrush.bench.experiments.value_table import Row, TableImages, value_rows
from bitbrush.bench.images.generation import Generated
from bitbrush.bench.images.paired_runs import latent_mse_by_step, paired_metrics
from bitbrush.bench.metrics.counts import FEWEST_DECIDING
from bitbrush.bench.metrics.interval import Interval, bootstrap_difference, bootstrap_mean
from bitbrush.bench.metrics.paired import LATENT_MSE, PSNR
from bitbrush.bench.pages.plots import (
    STEP_AXIS,
    Axis,
    LinePlot,
    Scale,
    Series,
)
from bitbrush.quantization.quantize import Quantization

GALLERY_ROWS = 4
COMMAND = "bitbrush demo"
SHOWN = ("rtn", "pcr")
EXPERIMENT = "demo"


@dataclass(frozen=True)
class Contest:
    """Full precision, the same with other noise, and the candidates on the same prompts, everything by style.

    ``sizes``: of the candidates that are saved.
    """

    model: str
    seed: int
    prompts: Mapping[str, Sequence[str]]
    quantized: Mapping[str, Quantization]
    sizes: Mapping[str, DenoiserSizes]
    reference: Mapping[str, Generated]
    other_seed: Mapping[str, Generated]
    candidates: Mapping[str, Mapping[str, Generated]]

    @cached_property
    def metrics(self) -> dict[str, dict[str, Mapping[str, NDArray[np.float64]]]]:
        """By candidate ("other seed" is one) and style: metrics, a value per pair."""
        runs = {**self.candidates, "other seed": self.other_seed}
        return {
            name: {style: paired_metrics(reference, run[style]) for style, reference in self.reference.items()}
            for name, run in runs.items()
        }

    def all_pairs(self, candidate: str, metric: str) -> NDArray[np.float64]:
        """Of all styles together, ``(N,)``."""
        return np.concatenate([by_metric[metric] for by_metric in self.metrics[candidate].values()])

    def error_by_step(self, candidate: str) -> NDArray[np.float64]:
        """Latent MSE after each denoiser call, all styles together, ``(N, T)``."""
        runs = self.candidates[candidate]
        return np.concatenate([latent_mse_by_step(self.reference[style], runs[style]) for style in self.reference])


def demo_page(contest: Contest) -> DemoPage:
    return DemoPage(
        title=f"bitbrush: {contest.model} in 4-bit weights and 8-bit activations",
        verdict=_verdict(contest),
        command=COMMAND,
        facts=dict(_facts(contest)),
        gallery=list(_gallery(contest)),
        candidates=_candidate_rows(contest),
        plots=[_range_plot(contest), _error_plot(contest)],
    )


def demo_results(contest: Contest) -> str:
    """All figures of the page and those behind it, as JSON."""
    content = {
        "denoiser_bytes": {name: asdict(one) for name, one in contest.sizes.items()},
        "recipes": {name: one.recipe.to_dict() for name, one in contest.quantized.items()},
        "metrics": {
            name: {
                style: {metric: _interval(values) for metric, values in by_metric.items()}
                for style, by_metric in styles.items()
            }
            for name, styles in contest.metrics.items()
        },
        "latent_mse_by_step": {name: contest.error_by_step(name).mean(0).tolist() for name in contest.candidates},
        "cost": {
            name: {phase: vars(cost) for phase, cost in one.costs.items()} for name, one in contest.quantized.items()
        },
    }
    pcr = contest.quantized["pcr"]
    protocol = {
        "model": contest.model,
        "scheduler": type(pcr.source.scheduler).__name__,
        "steps": pcr.recipe.steps,
        "guidance_scale": pcr.recipe.guidance_scale,
        "seed": contest.seed,
        "prompt_sets": [{"name": style, "prompts": len(prompts)} for style, prompts in contest.prompts.items()],
    }
    return results_text(results_document(EXPERIMENT, command=COMMAND, protocol=protocol, content=content))


def demo_rows(contest: Contest) -> Iterator[Row]:
    """Yields a row for each image, candidate and metric, another seed included."""
    for name, styles in contest.metrics.items():
        for style, by_metric in styles.items():
            prompts = contest.prompts[style]
            seed = contest.seed + (name not in contest.candidates)
            images = TableImages(style, prompts, [seed] * len(prompts))
            values = {metric: of_images.tolist() for metric, of_images in by_metric.items()}
            yield from value_rows(EXPERIMENT, name, images, values)


def _interval(values: NDArray[np.float64]) -> dict[str, float]:
    interval = bootstrap_mean(values)
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "n": interval.n}


def _verdict(contest: Contest) -> str:
    rtn, pcr = (contest.all_pairs(name, PSNR) for name in SHOWN)
    gain = bootstrap_difference(rtn, pcr)
    packed, checkpoint, float32 = _mib(contest.sizes["pcr"])
    if gain.n < FEWEST_DECIDING:
        found = f"{gain.n} images are too few to tell PCR from round-to-nearest"
    elif gain.low > 0:
        found = f"PCR stays {gain.mean:.1f} dB nearer to full precision than round-to-nearest"
    else:
        found = f"PCR is not measurably nearer to full precision than round-to-nearest ({gain.mean:+.1f} dB)"
    return (
        f"{found}: {pcr.mean():.1f} dB against {rtn.mean():.1f} dB PSNR over {len(pcr)} held-out prompts, "
        f"in {packed:.1f} MiB instead of its checkpoint's {checkpoint:.1f} ({float32:.1f} in float32)."
    )


def _facts(contest: Contest) -> Iterator[tuple[str, str]]:
    pcr = contest.quantized["pcr"]
    recipe = pcr.recipe
    scheduler = type(pcr.source.scheduler).__name__
    yield "Plan", f"{scheduler}, {recipe.steps} steps, guidance {recipe.guidance_scale:g}"
    yield "Calibration", f"{recipe.num_prompts} prompts of style coco"
    pairs = ", ".join(f"{len(prompts)} of style {style}" for style, prompts in contest.prompts.items())
    yield "Held out", f"{pairs}; no combination of objects, colour and position is in both"
    yield "Relaxed steps", f"{recipe.relax or 'none'}: {pcr.average_activation_bits:.2f} activation bits on average"
    yield (
        "Another seed",
        (
            "Two full-precision pictures of one prompt from different noise: "
            f"{_text(contest.all_pairs('other seed', PSNR))} dB PSNR. A candidate as low as this made another picture."
        ),
    )
    gain = bootstrap_difference(contest.all_pairs("one-shot", PSNR), contest.all_pairs("pcr", PSNR))
    yield (
        "Progressive or one-shot",
        (
            "With the same weights, progressive ranges change PSNR by "
            f"{gain.mean:+.2f} dB ({gain.low:+.2f} to {gain.high:+.2f})."
        ),
    )
    for name in SHOWN:
        costs = contest.quantized[name].costs
        lines = [f"{phase.replace('_', ' ')} {cost.seconds:.0f} s" for phase, cost in costs.items()]
        yield f"Cost of {name}", "\n".join(lines)
    peak = max(cost.peak_mib for one in contest.quantized.values() for cost in one.costs.values())
    yield "Peak memory", f"{peak:.0f} MiB while quantizing"
    yield "Versions", ", ".join(f"{name} {number}" for name, number in _versions().items())


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("bitbrush", "torch", "diffusers", "transformers")}
    return {**packages, "Python": platform.python_version()}


def _text(values: NDArray[np.float64]) -> str:
    interval = bootstrap_mean(values)
    return f"{interval.mean:.1f} ({interval.low:.1f} to {interval.high:.1f})"


def _gallery(contest: Contest) -> Iterator[GalleryRow]:
    """The first prompts of each style, none picked."""
    for style, prompts in contest.prompts.items():
        for index, prompt in enumerate(prompts[:GALLERY_ROWS]):
            images = {name: contest.candidates[name][style].images[index] for name in SHOWN}
            decibels = {name: float(contest.metrics[name][style][PSNR][index]) for name in SHOWN}
            full = contest.reference[style].images[index]
            yield GalleryRow(prompt, style, contest.seed, {"full": full, **images}, decibels)


def _candidate_rows(contest: Contest) -> list[CandidateRow]:
    _, checkpoint, float32 = _mib(contest.sizes["pcr"])
    full = CandidateRow("full", "full precision", 32, 32, checkpoint, float32, {})
    return [full, *(_candidate_row(contest, name) for name in SHOWN)]


def _candidate_row(contest: Contest, name: str) -> CandidateRow:
    quantization, (packed, _, float32) = contest.quantized[name], _mib(contest.sizes[name])
    figures: dict[str, dict[str, Interval]] = {
        style: {metric: bootstrap_mean(values) for metric, values in by_metric.items()}
        for style, by_metric in contest.metrics[name].items()
    }
    return CandidateRow(
        name=name,
        label=name,
        weight_bits=quantization.recipe.weights,
        activation_bits=quantization.average_activation_bits,
        denoiser_mib=packed,
        float32_mib=float32,
        figures=figures,
    )


def _mib(sizes: DenoiserSizes) -> tuple[float, float, float]:
    """Packed, in the checkpoint, in float32."""
    assert sizes.checkpoint is not None  # which an artifact made here records
    return sizes.packed / MIB, sizes.checkpoint / MIB, sizes.float32 / MIB


def _range_plot(contest: Contest) -> LinePlot:
    """The layer whose range changes most over the steps."""
    ranges = {
        layer.name: np.array([qparams.range for qparams in layer.schedule.qparams])
        for layer in contest.quantized["pcr"].outcome.layers
    }
    name = max(ranges, key=lambda layer: np.ptp(ranges[layer], axis=1).max() / np.ptp(ranges[layer], axis=1).min())
    static = next(layer for layer in contest.quantized["rtn"].outcome.layers if layer.name == name)
    low, high = static.schedule.qparams[0].range
    steps = list(range(len(ranges[name])))
    series = [
        Series("pcr, highest", steps, ranges[name][:, 1].tolist()),
        Series("pcr, lowest", steps, ranges[name][:, 0].tolist()),
        Series("rtn, highest", steps, [high] * len(steps)),
        Series("rtn, lowest", steps, [low] * len(steps)),
    ]
    caption = (
        f"The input of {name}, of all layers the one whose range changes most. One static range has to hold what any "
        "step produces; PCR has a range for each step."
    )
    return LinePlot("A layer's range", series, STEP_AXIS, Axis("value of the layer's input"), caption)


def _error_plot(contest: Contest) -> LinePlot:
    names = {"rtn": "rtn: static", "one-shot": "one-shot", "pcr": "progressive (pcr)"}
    series = []
    for name, label in names.items():
        errors = contest.error_by_step(name)
        intervals = [bootstrap_mean(errors[:, step], resamples=2000) for step in range(errors.shape[1])]
        means, lows, highs = zip(*((i.mean, i.low, i.high) for i in intervals), strict=True)
        series.append(Series(label, list(range(len(means))), means, lows, highs))
    error = Axis(f"{LATENT_MSE} to full precision", Scale.LOG)
    caption = (
        "Distance of the latents from those of full precision after each denoiser call, with 95 % intervals over "
        f"{len(contest.all_pairs('pcr', PSNR))} prompts. One-shot and progressive share their weights."
    )
    return LinePlot("Error over the steps", series, STEP_AXIS, error, caption)
