"""What a metric needs of a network that turns pictures into features."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class FeatureExtractor(Protocol):
    """``distance_name``: what the Fréchet distance of its features is called."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str:
        """SHA-256 of the weights, and of whatever else decides the features."""

    @property
    def distance_name(self) -> str: ...

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """``(N, H, W, 3)`` to ``(N, D)``; a picture's features do not depend on the others."""
