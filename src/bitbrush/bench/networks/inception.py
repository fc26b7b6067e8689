"""The standard Inception of FID, as the torch-fidelity package computes it (extra ``fid``)."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bitbrush.session.digests import file_digest
from bitbrush.sources.networks import require_whole

STANDARD_WEIGHTS = "6726825d"
"""Start of the SHA-256 of FID's own weights; torch-fidelity has it in the file's name."""


@dataclass(frozen=True)
class Inception:
    """Inception with the 2048 pooled features of FID; images are resized as FID's reference program does."""

    name: str
    digest: str
    network: Any

    @property
    def distance_name(self) -> str:
        """Name of the distance: FID for FID's weights, measured to the full-precision model's images."""
        standard = self.digest.startswith(STANDARD_WEIGHTS)
        return "FID to full precision" if standard else f"Fréchet distance ({self.name})"

    @torch.no_grad()
    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Computes features (N, 2048) of images (N, H, W, 3)."""
        (features,) = self.network(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())
        pooled: NDArray[np.float32] = features.float().cpu().numpy()
        return pooled


def load_inception(path: str | os.PathLike[str]) -> Inception:
    """Loads torch-fidelity's weights.

    Raises:
        ValueError: The package is missing, or the file cannot be used.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ValueError(
            f"feature extractor {str(path)!r} needs the package torch-fidelity ({error}): pip install 'bitbrush[fid]'"
        ) from error
    file = Path(path)
    try:
        digest = file_digest(file)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(file))
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ValueError(
            f"feature extractor {str(file)!r} cannot be read: {error}; give torch-fidelity's weights"
        ) from error
    require_whole(network, f"feature extractor {str(file)!r}")
    return Inception(f"inception {file.stem}", digest, network.eval())
