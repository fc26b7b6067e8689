"""Choice of the networks and metrics of one benchmark."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bitbrush.bench.metrics.registry import METRICS, ImageMetric, Metric, PairedMetric
from bitbrush.bench.networks import BUNDLED_CLIP, USUAL_CLIP
from bitbrush.bench.networks.clip import Clip, load_clip
from bitbrush.bench.networks.extractor import FeatureExtractor
from bitbrush.bench.networks.inception import load_inception
from bitbrush.bench.networks.lpips import Lpips, load_lpips
from bitbrush.bench.networks.preference.named import load_named
from bitbrush.zoo import MODELS

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Networks:
    """Networks and further metrics that figures are computed with.

    Args:
        extractor: Network whose features distances between sets are computed from.
        clip: CLIP of the CLIP scores.
        lpips: LPIPS; None leaves it out.
        metrics: Metrics from outside the package.
    """

    extractor: FeatureExtractor
    clip: Clip
    lpips: Lpips | None
    metrics: tuple[Metric, ...] = ()

    @property
    def paired(self) -> list[PairedMetric]:
        """Paired metrics beside the built-in ones: LPIPS, then those from outside."""
        paired = [metric for metric in self.metrics if isinstance(metric, PairedMetric)]
        if self.lpips is None:
            return paired
        lpips = PairedMetric(self.lpips.name, self.lpips.distances, higher_is_better=False, version=self.lpips.digest)
        return [lpips, *paired]

    @property
    def of_images(self) -> list[ImageMetric]:
        """Metrics of single images from outside."""
        return [metric for metric in self.metrics if isinstance(metric, ImageMetric)]


def load_networks(
    model: str,
    *,
    clip: str | None = None,
    feature_extractor: str | None = None,
    lpips: str | os.PathLike[str] | None = None,
    metrics: Sequence[str] = (),
) -> Networks:
    """Loads the networks of a benchmark on the CPU, and takes the registered metrics along.

    Args:
        model: Full-precision model, which decides the default CLIP.
        clip: CLIP model: bundled name, folder or hub id.
        feature_extractor: A CLIP, or the path of torch-fidelity's Inception weights (.pth); by default ``clip``.
        lpips: Path of the weights of LPIPS; None leaves it out.
        metrics: Metrics of preference and perception, ``NAME=WEIGHTS`` each.

    Raises:
        ValueError: A network cannot be loaded, or a metric is unknown or invalid.
    """
    judge = judge_of(model, clip)
    extractor: FeatureExtractor = judge
    if feature_extractor is not None:
        is_inception = feature_extractor.endswith(".pth")
        extractor = load_inception(feature_extractor) if is_inception else load_clip(feature_extractor, CPU)
    named = [load_named(text) for text in metrics]
    weights = None if lpips is None else load_lpips(lpips)
    return Networks(extractor, judge, weights, (*METRICS.values(), *named))


def judge_of(model: str, clip: str | None) -> Clip:
    """Loads the named CLIP, or the default one for the model."""
    return load_clip(clip or (BUNDLED_CLIP if model in MODELS else USUAL_CLIP), CPU)
