"""PickScore: the preference that a CLIP fine-tuned on people's choices has for an image of a prompt."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from bitbrush.bench.metrics.cmmd import normalized
from bitbrush.bench.metrics.registry import PromptMetric
from bitbrush.bench.networks.clip import load_clip


def load(weights: str) -> PromptMetric:
    """Loads PickScore from a folder with its weights and with the tokenizer and image processor of its CLIP-H.

    The score is the cosine of image and prompt times the learned scale. Source: Kirstain et al., arXiv 2305.01569,
    section 3.

    Raises:
        ValueError: It is no CLIP, or cannot be loaded.
    """
    clip = load_clip(weights, torch.device("cpu"))
    scale = float(clip.model.logit_scale.detach().exp())

    def score(images: NDArray[np.uint8], prompts: Sequence[str]) -> NDArray[np.float64]:
        cosines = normalized(clip.features(images)) * normalized(clip.text_features(prompts))
        values: NDArray[np.float64] = scale * cosines.sum(axis=1)
        return values

    return PromptMetric(f"PickScore ({clip.name})", score, version=clip.digest)
