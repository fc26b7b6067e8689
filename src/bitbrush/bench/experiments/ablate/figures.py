"""Figures of an ablation: means with intervals, medians, ratios to a chosen recipe, and the gap between styles."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bitbrush.bench.experiments.ablate.cells import SetValues
from bitbrush.bench.metrics.interval import (
    Interval,
    bootstrap_difference,
    bootstrap_gap,
    bootstrap_mean,
    bootstrap_ratio,
    median_of,
    student_mean,
)
from bitbrush.bench.metrics.latent_mse import geometric_mean
from bitbrush.sources.prompts import Domain

TOGETHER = "all prompt sets"
Paired = Mapping[str, NDArray[np.float64]]
"""Values per image by name: those of :data:`VALUES`, (N,) each, and ``by_step``, (N, T)."""
VALUES = ("psnr", "latent_mse", "clip")


@dataclass(frozen=True)
class Figures:
    """Figures of one prompt set, or of all.

    Args:
        psnr: Mean PSNR in dB.
        psnr_median: Median PSNR.
        latent_mse: Mean latent MSE.
        latent_mse_geometric: Geometric mean of the latent MSE, which a few images do not dominate; None where a pair is
            identical.
        clip_score: Mean CLIP score.
        clip_difference: CLIP score minus full precision's.
        latent_mse_by_step: Geometric mean of the latent MSE after each denoiser call; 0 where a pair is identical.
    """

    psnr: Interval
    psnr_median: Interval
    latent_mse: Interval
    latent_mse_geometric: Interval | None
    clip_score: Interval
    clip_difference: Interval
    latent_mse_by_step: tuple[float, ...]


@dataclass(frozen=True)
class Against:
    """Comparison with another recipe over the same images.

    Args:
        psnr_difference: PSNR minus the other's.
        latent_mse_ratio: Latent MSE as a multiple of the other's; None where a pair is identical.
        geometric_ratio: The same of geometric means.
    """

    psnr_difference: Interval
    latent_mse_ratio: Interval | None
    geometric_ratio: Interval | None


def by_set(sets: Mapping[str, SetValues]) -> dict[str, Paired]:
    """Returns the values by prompt set, preceded by those of all sets together where there are several."""
    paired: dict[str, Paired] = {
        name: {key: getattr(values, key) for key in (*VALUES, "by_step")} for name, values in sets.items()
    }
    return paired if len(paired) == 1 else {TOGETHER: joined(paired.values()), **paired}


def joined(sets: Iterable[Paired]) -> Paired:
    """Concatenates the values of several prompt sets."""
    parts = list(sets)
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def figures(values: Paired, full_clip: NDArray[np.float64]) -> Figures:
    """Computes the figures of values; ``full_clip``: CLIP scores of full precision's images, (N,)."""
    errors = values["latent_mse"]
    return Figures(
        psnr=bootstrap_mean(values["psnr"]),
        psnr_median=median_of(values["psnr"]),
        latent_mse=bootstrap_mean(errors),
        latent_mse_geometric=geometric_mean(errors),
        clip_score=bootstrap_mean(values["clip"]),
        clip_difference=bootstrap_difference(full_clip, values["clip"]),
        latent_mse_by_step=tuple(stats.gmean(values["by_step"], axis=0).tolist()),
    )


def against(other: Paired, values: Paired) -> Against:
    """Compares values with those of another recipe."""
    first, second = other["latent_mse"], values["latent_mse"]
    apart = min(first.min(), second.min()) > 0
    return Against(
        psnr_difference=bootstrap_difference(other["psnr"], values["psnr"]),
        latent_mse_ratio=bootstrap_ratio(first, second) if apart else None,
        geometric_ratio=_exponential(student_mean(np.log(second) - np.log(first))) if apart else None,
    )


def gap(sets: Mapping[str, Paired], domains: Mapping[str, Domain]) -> Interval | None:
    """Computes PSNR on prompts of unseen style minus that on the calibration's; None unless there are both."""
    seen, unseen = (
        [sets[name]["psnr"] for name, domain in domains.items() if domain is style]
        for style in (Domain.CALIBRATION, Domain.UNSEEN)
    )
    return bootstrap_gap(np.concatenate(seen), np.concatenate(unseen)) if seen and unseen else None


def _exponential(interval: Interval) -> Interval:
    mean, low, high = np.exp([interval.mean, interval.low, interval.high]).tolist()
    return Interval(mean, low, high, interval.n)
