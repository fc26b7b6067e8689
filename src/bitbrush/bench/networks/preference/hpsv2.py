"""HPSv2: the score that a CLIP fine-tuned on people's choices gives an image of a prompt, by its own package."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bitbrush.bench.metrics.registry import PromptMetric
from bitbrush.bench.networks.preference.weights import weights_digest


def load(weights: str) -> PromptMetric:
    """Loads HPSv2 from the file of its checkpoint, ``HPS_v2.1_compressed.pt``. Source: arXiv 2306.09341.

    Raises:
        ValueError: There is no such file.
    """
    digest = weights_digest(weights)
    from hpsv2.img_score import score as score_of

    def score(images: NDArray[np.uint8], prompts: Sequence[str]) -> NDArray[np.float64]:
        pairs = zip(images, prompts, strict=True)
        return np.array([float(score_of(Image.fromarray(image), prompt, cp=weights)[0]) for image, prompt in pairs])

    return PromptMetric("HPSv2", score, version=digest)
