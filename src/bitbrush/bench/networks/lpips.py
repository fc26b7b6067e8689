"""LPIPS: the distance of two images in a network's features, weighted to agree with people."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from bitbrush.bench.metrics.pairs import require_image_pairs
from bitbrush.session.digests import file_digest
from bitbrush.sources.networks import is_finite

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


@dataclass(frozen=True)
class _Convolution:
    """Convolution: index in torchvision's ``features``, output channels and geometry."""

    index: int
    width: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


@dataclass(frozen=True)
class _Backbone:
    """Slices of convolutions, each followed by ReLU; a maximum pooling precedes the slices that ``pooled`` marks."""

    name: str
    slices: tuple[tuple[_Convolution, ...], ...]
    pooled: tuple[bool, ...]
    window: int
    smallest: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of every tensor of the network by name."""
        shapes: dict[str, tuple[int, ...]] = {}
        channels = 3
        for level, convolutions in enumerate(self.slices):
            for convolution in convolutions:
                shapes[_key(level, convolution, "weight")] = (
                    convolution.width,
                    channels,
                    convolution.kernel,
                    convolution.kernel,
                )
                shapes[_key(level, convolution, "bias")] = (convolution.width,)
                channels = convolution.width
            shapes[f"lin{level}.model.1.weight"] = (1, channels, 1, 1)
        return shapes


ALEX = _Backbone(
    name="alex",
    slices=(
        (_Convolution(0, 64, 11, 4, 2),),
        (_Convolution(3, 192, 5, 1, 2),),
        (_Convolution(6, 384),),
        (_Convolution(8, 256),),
        (_Convolution(10, 256),),
    ),
    pooled=(False, True, True, False, False),
    window=3,
    smallest=31,
)
VGG = _Backbone(
    name="vgg",
    slices=tuple(
        tuple(_Convolution(index, width) for index in indices)
        for width, indices in (
            (64, (0, 2)),
            (128, (5, 7)),
            (256, (10, 12, 14)),
            (512, (17, 19, 21)),
            (512, (24, 26, 28)),
        )
    ),
    pooled=(False, True, True, True, True),
    window=2,
    smallest=16,
)


@dataclass(frozen=True)
class Lpips:
    """LPIPS with its weights; ``name`` includes the backbone, because values of backbones differ."""

    name: str
    digest: str
    backbone: _Backbone
    weights: Mapping[str, Tensor]

    @torch.no_grad()
    def distances(self, reference: NDArray[np.uint8], candidate: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Computes the distance of each pair: 0 for identical images, larger for less similar ones.

        ::

            sum over slices l of  mean over positions of  w_l . (f_l(x) / |f_l(x)| - f_l(y) / |f_l(y)|)^2

        Source: Zhang et al., arXiv 1801.03924, equation 1, with the weights "v0.1" of the authors' package.

        Args:
            reference: uint8 images (N, H, W, 3).
            candidate: Images of the same shape, paired by index.

        Returns:
            Distances, (N,) float64.

        Raises:
            ValueError: Shapes or dtypes do not fit, or the images are too small for the network.
        """
        require_image_pairs(reference, candidate)
        if min(reference.shape[1:3]) < self.backbone.smallest:
            raise ValueError(
                f"{self.name} takes images from {self.backbone.smallest} pixels; these are {reference.shape[1:3]}"
            )
        values = torch.zeros(len(reference), dtype=torch.float64)
        pairs = zip(self._features(reference), self._features(candidate), strict=True)
        for level, (first, second) in enumerate(pairs):
            weights = self.weights[f"lin{level}.model.1.weight"]
            squares = (_unit(first) - _unit(second)).square()
            values += functional.conv2d(squares, weights).mean(dim=(1, 2, 3)).double()
        distances: NDArray[np.float64] = values.numpy()
        return distances

    def _features(self, images: NDArray[np.uint8]) -> list[Tensor]:
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        x = (x - torch.tensor(SHIFT).view(3, 1, 1)) / torch.tensor(SCALE).view(3, 1, 1)
        features = []
        for level, (convolutions, pooled) in enumerate(zip(self.backbone.slices, self.backbone.pooled, strict=True)):
            if pooled:
                x = functional.max_pool2d(x, self.backbone.window, stride=2)
            for convolution in convolutions:
                weight, bias = (self.weights[_key(level, convolution, kind)] for kind in ("weight", "bias"))
                x = functional.relu(
                    functional.conv2d(x, weight, bias, stride=convolution.stride, padding=convolution.padding)
                )
            features.append(x)
        return features


def load_lpips(path: str | os.PathLike[str]) -> Lpips:
    """Loads the weights of the ``lpips`` package, AlexNet or VGG-16, from a safetensors file.

    ::

        save_file(lpips.LPIPS(net="alex").state_dict(), "lpips-alex.safetensors")

    Raises:
        ValueError: The file cannot be read or holds something else.
    """
    file = Path(path)
    try:
        weights = load_file(file)
        digest = file_digest(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"LPIPS weights {str(file)!r} cannot be read: {error}; give a safetensors file") from error
    problems = {backbone.name: _missing(backbone, weights) for backbone in (ALEX, VGG)}
    for backbone in (ALEX, VGG):
        if problems[backbone.name] is None:
            if bad := [name for name in backbone.shapes() if not is_finite(weights[name])]:
                raise ValueError(f"LPIPS weights {str(file)!r} hold NaN or infinity in {bad[0]}; fetch them again")
            return Lpips(f"LPIPS ({backbone.name})", digest, backbone, weights)
    raise ValueError(
        f"LPIPS weights {str(file)!r} lack {problems['alex']} for AlexNet and {problems['vgg']} for VGG-16; save "
        'lpips.LPIPS(net="alex").state_dict() with safetensors'
    )


def _missing(backbone: _Backbone, weights: Mapping[str, Tensor]) -> str | None:
    """Returns the name of the first tensor that is missing or has another shape; None if there is none."""
    for name, shape in backbone.shapes().items():
        if name not in weights:
            return name
        if tuple(weights[name].shape) != shape:
            return f"{name} of shape {shape}"
    return None


def _key(level: int, convolution: _Convolution, kind: str) -> str:
    return f"net.slice{level + 1}.{convolution.index}.{kind}"


def _unit(x: Tensor) -> Tensor:
    """Divides the feature vector of every position by its length."""
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
