"""The networks of one benchmark."""

import os
from dataclasses import dataclass

import torch

from bitbrush.bench.networks import BUNDLED_CLIP, USUAL_CLIP
from bitbrush.bench.networks.clip import Clip, load_clip
from bitbrush.bench.networks.extractor import FeatureExtractor
from bitbrush.bench.networks.inception import load_inception
from bitbrush.bench.networks.lpips import Lpips, load_lpips
from bitbrush.zoo import MODELS


@dataclass(frozen=True)
class Networks:
    """What the figures look through; ``lpips`` None: not measured."""

    extractor: FeatureExtractor
    clip: Clip
    lpips: Lpips | None


def load_networks(
    model: str,
    *,
    clip: str | None = None,
    feature_extractor: str | None = None,
    lpips: str | os.PathLike[str] | None = None,
) -> Networks:
    """On the CPU. ``feature_extractor``: a CLIP, or torch-fidelity's Inception weights (.pth); by default ``clip``.

    Raises ValueError for one that cannot be loaded.
    """
    judge = judge_of(model, clip)
    perceptual = None if lpips is None else load_lpips(lpips)
    if feature_extractor is None:
        return Networks(judge, judge, perceptual)
    if feature_extractor.endswith(".pth"):
        return Networks(load_inception(feature_extractor), judge, perceptual)
    return Networks(load_clip(feature_extractor, torch.device("cpu")), judge, perceptual)


def judge_of(model: str, clip: str | None) -> Clip:
    """The CLIP named, or the one that is usual for the model."""
    return load_clip(clip or (BUNDLED_CLIP if model in MODELS else USUAL_CLIP), torch.device("cpu"))
