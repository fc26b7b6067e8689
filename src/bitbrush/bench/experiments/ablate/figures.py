"""The figures of an ablation: means with intervals, medians, ratios to a chosen recipe, and what is lost elsewhere."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.experiments.ablate.cells import SetValues
from bitbrush.bench.metrics.interval import (
    Interval,
    bootstrap_difference,
    bootstrap_gap,
    bootstrap_mean,
    bootstrap_ratio,
    median_interval,
)
from bitbrush.bench.metrics.latent_mse import geometric_mean
from bitbrush.sources.prompts import Domain

TOGETHER = "all prompt sets"
Paired = Mapping[str, NDArray[np.float64]]
"""Values picture by picture, of :data:`VALUES`, ``(N,)`` each, and ``by_step`` ``(N, T)``."""
VALUES = ("psnr", "latent_mse", "clip")


@dataclass(frozen=True)
class Figures:
    """Of one prompt set, or of all. ``latent_mse_geometric``: the geometric mean, which a few pictures do not own.

    It is None where a pair is exactly alike. ``clip_difference``: the picture's score less full precision's.
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
    """Beside another recipe's figures of the same pictures.

    ``psnr_difference``: this one's less the other's; the latent MSE as a multiple of the other's, by means and by
    geometric means, None where a pair is exactly alike.
    """

    psnr_difference: Interval
    latent_mse_ratio: Interval | None
    geometric_ratio: Interval | None


def by_set(sets: Mapping[str, SetValues]) -> dict[str, Paired]:
    """By set and, where there are several, of all together."""
    found: dict[str, Paired] = {
        name: {key: getattr(one, key) for key in (*VALUES, "by_step")} for name, one in sets.items()
    }
    return found if len(found) == 1 else {TOGETHER: joined(found.values()), **found}


def joined(sets: Iterable[Paired]) -> Paired:
    parts = list(sets)
    return {key: np.concatenate([one[key] for one in parts]) for key in parts[0]}


def figures(own: Paired, full_clip: NDArray[np.float64]) -> Figures:
    errors = own["latent_mse"]
    return Figures(
        psnr=bootstrap_mean(own["psnr"]),
        psnr_median=Interval(*median_interval(own["psnr"]), own["psnr"].size),
        latent_mse=bootstrap_mean(errors),
        latent_mse_geometric=geometric_mean(errors),
        clip_score=bootstrap_mean(own["clip"]),
        clip_difference=bootstrap_difference(full_clip, own["clip"]),
        latent_mse_by_step=tuple(own["by_step"].mean(0).tolist()),
    )


def against(other: Paired, own: Paired) -> Against:
    first, second = other["latent_mse"], own["latent_mse"]
    apart = min(first.min(), second.min()) > 0
    return Against(
        psnr_difference=bootstrap_difference(other["psnr"], own["psnr"]),
        latent_mse_ratio=bootstrap_ratio(first, second) if apart else None,
        geometric_ratio=_exponential(bootstrap_difference(np.log(first), np.log(second))) if apart else None,
    )


def gap(sets: Mapping[str, Paired], domains: Mapping[str, Domain]) -> Interval | None:
    """PSNR on prompts of unseen style less that on the calibration's; None where there are not both."""
    of = {
        domain: [sets[name]["psnr"] for name, own in domains.items() if own is domain]
        for domain in (Domain.CALIBRATION, Domain.UNSEEN)
    }
    if not all(of.values()):
        return None
    return bootstrap_gap(np.concatenate(of[Domain.CALIBRATION]), np.concatenate(of[Domain.UNSEEN]))


def _exponential(one: Interval) -> Interval:
    mean, low, high = np.exp([one.mean, one.low, one.high]).tolist()
    return Interval(mean, low, high, one.n)
