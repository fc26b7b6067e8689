"""DreamSim: perceptual distance of a pair that agrees with people's judgement of similarity, by its own package."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bitbrush.bench.metrics.registry import PairedMetric
from bitbrush.bench.networks.preference.weights import weights_digest


def load(weights: str) -> PairedMetric:
    """Loads DreamSim's ensemble from the folder that the package keeps its weights in. Source: arXiv 2306.09344.

    Raises:
        ValueError: There is no such folder.
    """
    digest = weights_digest(weights)
    import dreamsim

    model, preprocess = dreamsim.dreamsim(pretrained=True, device="cpu", cache_dir=weights)

    @torch.no_grad()
    def distance(reference: NDArray[np.uint8], candidate: NDArray[np.uint8]) -> NDArray[np.float64]:
        pairs = zip(reference, candidate, strict=True)
        return np.array([float(model(*(preprocess(Image.fromarray(image)) for image in pair))) for pair in pairs])

    return PairedMetric("DreamSim", distance, higher_is_better=False, version=digest)
