"""Figures of a benchmark by candidate and prompt set, from the values of the images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.experiments.bench.power import Detectable, detectable_differences
from bitbrush.bench.experiments.bench.qdiffbench import Entry, GeneratedImages
from bitbrush.bench.experiments.bench.verdict import (
    ALIKE_SSIM,
    Evidence,
    Verdict,
    verdict,
)
from bitbrush.bench.images.image_values import PAIRED, ImagePairs, ImageSets
from bitbrush.bench.metrics.clip_score import clip_score
from bitbrush.bench.metrics.cmmd import cmmd
from bitbrush.bench.metrics.counts import share_interval
from bitbrush.bench.metrics.frechet import frechet_interval
from bitbrush.bench.metrics.interval import (
    Interval,
    bootstrap_difference,
    bootstrap_gap,
    bootstrap_mean,
    median_of,
)
from bitbrush.bench.metrics.kid import kid
from bitbrush.bench.metrics.latent_mse import geometric_means
from bitbrush.bench.metrics.paired import LATENT_MSE, PSNR, PSNR_MEDIAN, SSIM, latent_mse_figures
from bitbrush.bench.networks.chosen import Networks
from bitbrush.session.progress import Progress
from bitbrush.sources.prompts import Domain, PromptSet

WORST = 10
ALIKE = f"pairs alike (SSIM ≥ {ALIKE_SSIM:g})"
NAN = "NaN latents"
MATCH = "CLIP score difference"
DIFFERENCE = ", difference"
"""Ending of the paired difference of a further metric of single images."""


@dataclass(frozen=True)
class SetFigures:
    """Figures of one candidate on one prompt set.

    Args:
        figures: Intervals by metric.
        latent_mse: Geometric mean after each denoiser call, over the images with stored latents.
        defects: Defects by index of the image.
        worst: Indices of the pairs with the lowest SSIM, lowest first.
        values: Values of the paired metrics, (N,) each.
        image_values: All values per image by metric; None where an image was not measured.
    """

    figures: Mapping[str, Interval]
    latent_mse: Sequence[Interval]
    defects: Mapping[int, str]
    worst: tuple[int, ...]
    values: Mapping[str, NDArray[np.float64]]
    image_values: Mapping[str, Sequence[float | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class EntryFigures:
    """Figures of one candidate.

    Args:
        entry: The candidate.
        sets: Figures by prompt set.
        together: Figures over the images of all prompt sets, where there are several.
        gaps: Paired metrics of unseen style minus calibration style, where there are both.
        verdict: Verdict; None where nothing was measured.
    """

    entry: Entry
    sets: Mapping[str, SetFigures] = field(default_factory=dict)
    together: Mapping[str, Interval] = field(default_factory=dict)
    gaps: Mapping[str, Interval] = field(default_factory=dict)
    verdict: Verdict | None = None


@dataclass(frozen=True)
class BenchFigures:
    """All figures of a benchmark.

    Args:
        reference: CLIP score and defects of full precision by prompt set.
        together: CLIP score of full precision over all prompt sets, where there are several.
        floor: Figures of another seed.
        candidates: Figures of the candidates.
        power: Differences that the images could have shown.
    """

    reference: Mapping[str, SetFigures]
    together: Mapping[str, Interval]
    floor: EntryFigures
    candidates: tuple[EntryFigures, ...]
    power: tuple[Detectable, ...] = ()


def bench_figures(
    generated: GeneratedImages, sets: Sequence[PromptSet], networks: Networks, progress: Progress
) -> BenchFigures:
    """Computes all figures; each candidate's prompt set is a step of progress, because bootstrapping takes time."""
    names = _Names(networks)
    reference = {name: _of_reference(images, networks, names) for name, images in generated.reference.images.items()}
    several = len(reference) > 1
    entries = list(generated.measurable())
    measured: dict[str, EntryFigures] = {}
    with progress("figures", len(entries) * (len(reference) + several)) as advance:
        for entry in entries:
            parts, of_sets = [], {}
            for name, images in entry.images.items():
                pairs = ImagePairs(generated.reference.images[name], images)
                parts.append(_measured(pairs, networks))
                of_sets[name] = _of_set(parts[-1], pairs, names)
                advance()
            together = _figures(_joined(parts), names) if several else {}
            measured[entry.name] = EntryFigures(entry, of_sets, together, _gaps(of_sets, sets))
            if several:
                advance()
    floor = measured[generated.floor.name]
    candidates = [
        _judged(measured[entry.name], reference, floor, names) if entry.name in measured else EntryFigures(entry)
        for entry in generated.candidates
    ]
    scores = np.concatenate([of_set.values[names.clip_score] for of_set in reference.values()])
    together = {names.clip_score: bootstrap_mean(scores)} if several else {}
    power = [one for name in reference for one in _power(name, candidates)]
    return BenchFigures(reference, together, floor, tuple(candidates), tuple(power))


def _power(prompt_set: str, candidates: Sequence[EntryFigures]) -> Iterator[Detectable]:
    values = {one.entry.name: one.sets[prompt_set].values for one in candidates if one.sets}
    from_full = {
        name: {metric: of_metric for metric, of_metric in of_set.items() if is_difference(metric)}
        for name, of_set in values.items()
    }
    psnr = {name: of_set[PSNR] for name, of_set in values.items()}
    return detectable_differences(prompt_set, from_full, psnr)


@dataclass(frozen=True)
class _Names:
    networks: Networks

    @property
    def distance(self) -> str:
        return self.networks.extractor.distance_name

    @property
    def kid(self) -> str:
        return f"KID, unpaired terms ({self.networks.extractor.name})"

    @property
    def cmmd(self) -> str:
        return f"CMMD, unpaired terms ({self.networks.clip.name})"

    @property
    def clip_score(self) -> str:
        return f"CLIP score ({self.networks.clip.name})"

    @property
    def match(self) -> str:
        return f"{MATCH} ({self.networks.clip.name})"

    @property
    def change(self) -> str:
        return f"CLIP score change ({self.networks.clip.name})"


def image_metrics(networks: Networks) -> list[str]:
    """Lists the metrics that every pair, or every image of a candidate, has a value of."""
    names = _Names(networks)
    paired, of_images = ([metric.name for metric in kind] for kind in (networks.paired, networks.of_images))
    return [*PAIRED, *paired, LATENT_MSE, names.clip_score, names.match, *of_images]


def is_difference(metric: str) -> bool:
    """Whether a metric is a paired difference from full precision."""
    return metric.endswith(DIFFERENCE) or metric.startswith(MATCH)


def higher_is_better(metric: str, further: Mapping[str, bool]) -> bool:
    """Whether more is better of a figure of `bench`; ``further`` says so of metrics from outside by name."""
    if (name := metric.removesuffix(DIFFERENCE)) in further:
        return further[name]
    return metric.startswith((PSNR, SSIM, "CLIP score", "pairs alike")) and not metric.startswith("CLIP score change")


def _of_reference(images: ImageSets, networks: Networks, names: _Names) -> SetFigures:
    scores = clip_score(images.features(networks.clip), images.texts(networks.clip))
    values = {names.clip_score: scores} | {metric.name: images.metric(metric) for metric in networks.of_images}
    figures = {name: bootstrap_mean(of_images) for name, of_images in values.items()}
    by_image = {name: of_images.tolist() for name, of_images in values.items()}
    return SetFigures(figures, (), images.defects(), (), values, by_image)


@dataclass(frozen=True)
class _Measured:
    """Values of pairs; those of single images are a tuple of the reference's and the candidate's.

    Args:
        values: Paired metrics by name, (N,) each.
        features: Features of the images, (N, D).
        clips: CLIP embeddings of the images, (N, D).
        scores: CLIP scores, (N,).
        errors: Latent MSE after every denoiser call, (K, T), of the pairs with finite stored latents.
        of_images: Further metrics of single images by name, (N,).
    """

    values: Mapping[str, NDArray[np.float64]]
    features: tuple[NDArray[np.float32], NDArray[np.float32]]
    clips: tuple[NDArray[np.float32], NDArray[np.float32]]
    scores: tuple[NDArray[np.float64], NDArray[np.float64]]
    errors: NDArray[np.float64]
    of_images: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]


def _measured(pairs: ImagePairs, networks: Networks) -> _Measured:
    reference, candidate = pairs.reference, pairs.candidate
    texts = reference.texts(networks.clip)
    clips = (reference.features(networks.clip), candidate.features(networks.clip))
    finite = [error for error in pairs.latent_mse_by_step().values() if np.isfinite(error).all()]
    return _Measured(
        values=pairs.metrics(networks.paired),
        features=(reference.features(networks.extractor), candidate.features(networks.extractor)),
        clips=clips,
        scores=(clip_score(clips[0], texts), clip_score(clips[1], texts)),
        errors=np.array(finite) if finite else np.empty((0, 0)),
        of_images={metric.name: (reference.metric(metric), candidate.metric(metric)) for metric in networks.of_images},
    )


def _joined(parts: Sequence[_Measured]) -> _Measured:
    """Concatenates the pairs of all parts."""

    def both(sides: Callable[[_Measured], tuple[NDArray[Any], NDArray[Any]]]) -> Any:
        return tuple(np.concatenate([sides(part)[side] for part in parts]) for side in (0, 1))

    errors = [part.errors for part in parts if part.errors.size]
    return _Measured(
        values={metric: np.concatenate([part.values[metric] for part in parts]) for metric in parts[0].values},
        features=both(lambda part: part.features),
        clips=both(lambda part: part.clips),
        scores=both(lambda part: part.scores),
        errors=np.concatenate(errors) if errors else np.empty((0, 0)),
        of_images={name: both(partial(_image_values, name)) for name in parts[0].of_images},
    )


def _image_values(name: str, measured: _Measured) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return measured.of_images[name]


def _figures(measured: _Measured, names: _Names) -> dict[str, Interval]:
    figures = {PSNR: bootstrap_mean(measured.values[PSNR]), PSNR_MEDIAN: median_of(measured.values[PSNR])}
    figures |= {name: bootstrap_mean(of_pairs) for name, of_pairs in measured.values.items() if name != PSNR}
    alike = measured.values[SSIM] >= ALIKE_SSIM
    figures[ALIKE] = share_interval(int(alike.sum()), alike.size)
    if measured.errors.size:
        figures |= latent_mse_figures(measured.errors[:, -1])
    figures[names.distance] = frechet_interval(*measured.features)
    figures[names.kid] = kid(*measured.features)
    figures[names.cmmd] = cmmd(*measured.clips)
    reference, candidate = measured.scores
    figures[names.clip_score] = bootstrap_mean(candidate)
    figures[names.match] = bootstrap_difference(reference, candidate)
    figures[names.change] = bootstrap_mean(np.abs(candidate - reference))
    for name, (full, quantized) in measured.of_images.items():
        figures[name] = bootstrap_mean(quantized)
        figures[f"{name}{DIFFERENCE}"] = bootstrap_difference(full, quantized)
    return figures


def _of_set(measured: _Measured, pairs: ImagePairs, names: _Names) -> SetFigures:
    broken = dict(pairs.candidate.defects())
    errors = pairs.latent_mse_by_step()
    broken |= {index: NAN for index, error in errors.items() if not np.isfinite(error).all()}
    reference, candidate = measured.scores
    differences = {f"{name}{DIFFERENCE}": new - full for name, (full, new) in measured.of_images.items()}
    return SetFigures(
        figures=_figures(measured, names),
        latent_mse=geometric_means(measured.errors),
        defects=broken,
        worst=tuple(int(index) for index in np.argsort(measured.values[SSIM], kind="stable")[:WORST]),
        values={**measured.values, names.match: candidate - reference, **differences},
        image_values={
            **{metric: values.tolist() for metric, values in measured.values.items()},
            LATENT_MSE: [float(errors[index][-1]) if index in errors else None for index in range(candidate.size)],
            names.clip_score: candidate.tolist(),
            names.match: (candidate - reference).tolist(),
            **{metric: values.tolist() for metric, (_, values) in measured.of_images.items()},
        },
    )


def _judged(
    figures: EntryFigures, reference: Mapping[str, SetFigures], floor: EntryFigures, names: _Names
) -> EntryFigures:
    evidence = {
        name: _evidence(of_set, reference[name], floor.sets[name], names) for name, of_set in figures.sets.items()
    }
    return replace(figures, verdict=verdict(evidence))


def _evidence(candidate: SetFigures, reference: SetFigures, floor: SetFigures, names: _Names) -> Evidence:
    defects = [candidate.defects[index] for index in candidate.defects.keys() - reference.defects.keys()]
    return Evidence(
        alike=candidate.figures[ALIKE],
        distance=candidate.figures[names.distance],
        floor=floor.figures[names.distance],
        match=candidate.figures[names.match],
        reference_match=reference.figures[names.clip_score].mean,
        broken=len(defects) - defects.count(NAN),
        reference_broken=len(reference.defects.keys() - candidate.defects.keys()),
        nan=defects.count(NAN),
    )


def _gaps(figures: Mapping[str, SetFigures], sets: Sequence[PromptSet]) -> dict[str, Interval]:
    def pooled(metric: str, domain: Domain) -> NDArray[np.float64]:
        parts = [figures[prompts.name].values[metric] for prompts in sets if prompts.domain is domain]
        return np.concatenate(parts) if parts else np.empty(0)

    metrics = next(iter(figures.values())).values
    gaps = {}
    for metric in metrics:
        seen, unseen = pooled(metric, Domain.CALIBRATION), pooled(metric, Domain.UNSEEN)
        if seen.size and unseen.size:
            gaps[metric] = bootstrap_gap(seen, unseen)
    return gaps
