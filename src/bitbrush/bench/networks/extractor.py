"""Interface of a network that turns images into features."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class FeatureExtractor(Protocol):
    """Network that turns images into features."""

    @property
    def name(self) -> str:
        """Name of the network."""

    @property
    def digest(self) -> str:
        """SHA-256 of everything that determines the features."""

    @property
    def distance_name(self) -> str:
        """Name of the Fréchet distance of its features."""

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Computes features (N, D) of images (N, H, W, 3); those of an image do not depend on the others."""
