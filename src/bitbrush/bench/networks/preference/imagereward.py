"""ImageReward: a reward for images of prompts that was learned from people's rankings, by its own package."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bitbrush.bench.metrics.registry import PromptMetric
from bitbrush.bench.networks.preference.weights import weights_digest


def load(weights: str) -> PromptMetric:
    """Loads ImageReward from the folder with ``ImageReward.pt`` and ``med_config.json``. Source: arXiv 2304.05977.

    Raises:
        ValueError: There is no such folder.
    """
    digest = weights_digest(weights)
    import ImageReward

    file, config = (str(Path(weights) / name) for name in ("ImageReward.pt", "med_config.json"))
    model = ImageReward.load(file, device="cpu", med_config=config)

    def score(images: NDArray[np.uint8], prompts: Sequence[str]) -> NDArray[np.float64]:
        pairs = zip(images, prompts, strict=True)
        return np.array([float(model.score(prompt, Image.fromarray(image))) for image, prompt in pairs])

    return PromptMetric("ImageReward", score, version=digest)
