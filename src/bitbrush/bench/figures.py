"""All figures of a benchmark, by candidate and prompt set, from what was computed of the pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.collection import Collection, Pairs
from bitbrush.bench.metrics.clip_score import clip_score
from bitbrush.bench.metrics.cmmd import cmmd
from bitbrush.bench.metrics.frechet import frechet_interval
from bitbrush.bench.metrics.interval import Interval, bootstrap_difference, bootstrap_gap, bootstrap_mean
from bitbrush.bench.metrics.kid import kid
from bitbrush.bench.metrics.paired import LATENT_MSE, PSNR, SSIM
from bitbrush.bench.networks.chosen import Networks
from bitbrush.bench.prompts import Domain, PromptSet
from bitbrush.bench.qdiffbench import Entry, Pictures
from bitbrush.bench.verdict import ALIKE_SSIM, Evidence, Verdict, verdict
from bitbrush.timeline.progress import Progress

WORST = 10
ALIKE = f"pairs alike (SSIM ≥ {ALIKE_SSIM:g})"


@dataclass(frozen=True)
class SetFigures:
    """Of one candidate and prompt set.

    ``figures`` by metric; ``latent_mse`` ``(T,)`` intervals over the pictures that kept their latents; ``defects`` by
    picture; ``worst`` pictures, least alike first; ``values`` of the paired metrics, ``(N,)`` each.
    """

    figures: Mapping[str, Interval]
    latent_mse: Sequence[Interval]
    defects: Mapping[int, str]
    worst: tuple[int, ...]
    values: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class EntryFigures:
    """Of one candidate. ``gaps``: of paired metrics, unseen style minus calibration style, where both are measured."""

    entry: Entry
    sets: Mapping[str, SetFigures]
    gaps: Mapping[str, Interval]
    verdict: Verdict | None


@dataclass(frozen=True)
class BenchFigures:
    """``reference``: the CLIP score and defects of full precision, by prompt set."""

    reference: Mapping[str, SetFigures]
    floor: EntryFigures
    candidates: tuple[EntryFigures, ...]


def bench_figures(
    pictures: Pictures, sets: Sequence[PromptSet], networks: Networks, progress: Progress
) -> BenchFigures:
    """Everything; each distance, of which bootstrapping takes the time, is a piece of progress."""
    names = _Names(networks)
    reference = {name: _of_reference(one, networks, names) for name, one in pictures.reference.pictures.items()}
    measured: dict[str, dict[str, SetFigures]] = {}
    entries = list(pictures.measurable())
    with progress("figures", len(entries) * len(reference)) as advance:
        for entry in entries:
            measured[entry.name] = {}
            for name, collection in entry.pictures.items():
                pairs = Pairs(pictures.reference.pictures[name], collection)
                measured[entry.name][name] = _of_pairs(pairs, networks, names)
                advance()
    floor = EntryFigures(pictures.floor, measured[pictures.floor.name], {}, None)
    candidates = []
    for entry in pictures.candidates:
        own = measured.get(entry.name, {})
        evidence = {name: _evidence(one, reference[name], floor.sets[name], names) for name, one in own.items()}
        candidates.append(EntryFigures(entry, own, _gaps(own, sets), verdict(evidence) if own else None))
    return BenchFigures(reference, floor, tuple(candidates))


@dataclass(frozen=True)
class _Names:
    networks: Networks

    @property
    def distance(self) -> str:
        return self.networks.extractor.distance_name

    @property
    def kid(self) -> str:
        return f"KID ({self.networks.extractor.name})"

    @property
    def cmmd(self) -> str:
        return f"CMMD ({self.networks.clip.name})"

    @property
    def clip_score(self) -> str:
        return f"CLIP score ({self.networks.clip.name})"

    @property
    def match(self) -> str:
        return f"CLIP score difference ({self.networks.clip.name})"


def higher_is_better(metric: str) -> bool:
    """Of any figure here."""
    return metric.startswith((PSNR, SSIM, "CLIP score", "pairs alike"))


def _of_reference(collection: Collection, networks: Networks, names: _Names) -> SetFigures:
    scores = clip_score(collection.features(networks.clip), collection.texts(networks.clip))
    return SetFigures({names.clip_score: bootstrap_mean(scores)}, (), collection.defects(), (), {})


def _of_pairs(pairs: Pairs, networks: Networks, names: _Names) -> SetFigures:
    reference, candidate = pairs.reference, pairs.candidate
    values = dict(pairs.metrics(networks.lpips))
    texts = reference.texts(networks.clip)
    clips = [collection.features(networks.clip) for collection in (reference, candidate)]
    features = [collection.features(networks.extractor) for collection in (reference, candidate)]
    scores = [clip_score(images, texts) for images in clips]
    errors = pairs.latent_mse_by_step()
    finite = [error for error in errors.values() if np.isfinite(error).all()]
    figures = {name: bootstrap_mean(of_pairs) for name, of_pairs in values.items()}
    figures[ALIKE] = bootstrap_mean(values[SSIM] >= ALIKE_SSIM)
    by_step = [bootstrap_mean(step, resamples=2000) for step in np.transpose(finite)] if finite else []
    if by_step:
        figures[LATENT_MSE] = bootstrap_mean([error[-1] for error in finite])
    figures[names.distance] = frechet_interval(*features)
    figures[names.kid] = kid(*features)
    figures[names.cmmd] = cmmd(*clips)
    figures[names.clip_score] = bootstrap_mean(scores[1])
    figures[names.match] = bootstrap_difference(*scores)
    found = dict(candidate.defects())
    found |= {index: "NaN latents" for index, error in errors.items() if not np.isfinite(error).all()}
    worst = tuple(int(index) for index in np.argsort(values[SSIM], kind="stable")[:WORST])
    values[names.match] = scores[1] - scores[0]
    return SetFigures(figures, by_step, found, worst, values)


def _evidence(own: SetFigures, reference: SetFigures, floor: SetFigures, names: _Names) -> Evidence:
    return Evidence(
        defects=len(own.defects),
        reference_defects=len(reference.defects),
        distance=own.figures[names.distance],
        floor=floor.figures[names.distance],
        alike=own.figures[ALIKE],
        match=own.figures[names.match],
        reference_match=reference.figures[names.clip_score].mean,
    )


def _gaps(own: Mapping[str, SetFigures], sets: Sequence[PromptSet]) -> dict[str, Interval]:
    def pooled(metric: str, domain: Domain) -> NDArray[np.float64]:
        parts = [own[one.name].values[metric] for one in sets if one.domain is domain]
        return np.concatenate(parts) if parts else np.empty(0)

    metrics = next(iter(own.values())).values if own else {}
    gaps = {}
    for metric in metrics:
        seen, unseen = pooled(metric, Domain.CALIBRATION), pooled(metric, Domain.UNSEEN)
        if seen.size and unseen.size:
            gaps[metric] = bootstrap_gap(seen, unseen)
    return gaps
