"""Values computed from images and stored beside them: features, metrics, defects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.images.chunks import compute_chunks, read_chunks
from bitbrush.bench.images.image_set import ImageSet
from bitbrush.bench.metrics.defects import defects
from bitbrush.bench.metrics.image_mse import image_mse
from bitbrush.bench.metrics.latent_mse import latent_mse
from bitbrush.bench.metrics.paired import IMAGE_MSE, PSNR, SSIM
from bitbrush.bench.metrics.psnr import psnr
from bitbrush.bench.metrics.registry import ImageMetric, PairedMetric
from bitbrush.bench.metrics.ssim import ssim
from bitbrush.bench.networks.clip import Clip
from bitbrush.bench.networks.extractor import FeatureExtractor
from bitbrush.session.progress import Progress
from bitbrush.session.ranks import Ranks

PAIRED = {PSNR: psnr, SSIM: ssim, IMAGE_MSE: image_mse}
_DEFECTS = ("", "black", "constant")


@dataclass(frozen=True)
class Work:
    """Processes that share the computation, and the callback that receives progress reports."""

    ranks: Ranks
    progress: Progress

    def phase(self, title: str) -> dict[str, Any]:
        """Returns the arguments of :func:`compute_chunks` for a phase of this title."""
        return {"phase": title, "ranks": self.ranks, "progress": self.progress}


@dataclass(frozen=True)
class ImageSets:
    """Images of one pipeline for one prompt set: the first ``count`` of its image sets, which are one per seed."""

    sets: tuple[ImageSet, ...]
    count: int

    @property
    def prompts(self) -> tuple[str, ...]:
        """Prompt of every image in the order of all values: those of the first seed, then those of the second."""
        return tuple(prompt for images in self.sets for prompt in images.prompts[: self.count])

    def image(self, index: int) -> NDArray[np.uint8]:
        """Reads an image, (H, W, 3)."""
        return self.sets[index // self.count].image(index % self.count)

    def seed(self, index: int) -> int:
        """Returns the seed of an image's run."""
        return self.sets[index // self.count].seed

    def seconds(self) -> list[float]:
        """Reads the seconds per image of every batch that was timed."""
        return [seconds for images in self.sets for seconds in images.seconds()]

    def compute_features(self, network: FeatureExtractor, work: Work) -> None:
        """Computes the features of all images."""
        for images in self.sets:
            directory = _features(images, network)
            compute_chunks(directory, self.count, images.images, network.features, **work.phase("image features"))

    def features(self, network: FeatureExtractor) -> NDArray[np.float32]:
        """Reads the features, (N, D)."""
        return np.concatenate([read_chunks(_features(images, network), self.count) for images in self.sets])

    def compute_metric(self, metric: ImageMetric, work: Work) -> None:
        """Computes a metric of single images."""

        def values(of_chunk: tuple[NDArray[np.uint8], list[str]]) -> NDArray[np.float64]:
            return metric.of_prompts(*of_chunk)

        for images in self.sets:

            def load(chunk: range, images: ImageSet = images) -> tuple[NDArray[np.uint8], list[str]]:
                return images.images(chunk), [images.prompts[index] for index in chunk]

            directory = _metric(images, metric)
            compute_chunks(directory, self.count, load, values, **work.phase(metric.name))

    def metric(self, metric: ImageMetric) -> NDArray[np.float64]:
        """Reads the values of a metric of single images, (N,)."""
        return np.concatenate([read_chunks(_metric(images, metric), self.count) for images in self.sets])

    def compute_texts(self, clip: Clip, work: Work) -> None:
        """Computes the CLIP embeddings of all prompts."""
        for images in self.sets:

            def texts(chunk: range, images: ImageSet = images) -> list[str]:
                return [images.prompts[index] for index in chunk]

            directory = _texts(images, clip)
            compute_chunks(directory, self.count, texts, clip.text_features, **work.phase("text features"))

    def texts(self, clip: Clip) -> NDArray[np.float32]:
        """Reads the CLIP embeddings of the prompts, (N, D)."""
        return np.concatenate([read_chunks(_texts(images, clip), self.count) for images in self.sets])

    def compute_defects(self, work: Work) -> None:
        """Looks for black and constant images."""

        def codes(images: NDArray[np.uint8]) -> NDArray[np.int8]:
            return np.array([_DEFECTS.index(defect) for defect in defects(images)], dtype=np.int8)

        for images in self.sets:
            directory = images.directory / "defects"
            compute_chunks(directory, self.count, images.images, codes, **work.phase("looking for defects"))

    def defects(self) -> dict[int, str]:
        """Reads the defect of each image that has one, by index."""
        codes = np.concatenate([read_chunks(images.directory / "defects", self.count) for images in self.sets])
        return {int(index): _DEFECTS[codes[index]] for index in np.flatnonzero(codes)}


@dataclass(frozen=True)
class ImagePairs:
    """Images of a candidate with the reference's of the same prompts and noise."""

    reference: ImageSets
    candidate: ImageSets

    def compute(self, further: Sequence[PairedMetric], work: Work) -> None:
        """Computes the built-in paired metrics and ``further`` ones."""

        def built_in(images: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> NDArray[np.float64]:
            return np.stack([metric(*images) for metric in PAIRED.values()], axis=1)

        count = self.reference.count
        for first, second in self._sets():

            def load(chunk: range, first: ImageSet = first, second: ImageSet = second) -> Any:
                return first.images(chunk), second.images(chunk)

            compute_chunks(_paired(first, second), count, load, built_in, **work.phase("pairs"))
            for metric in further:

                def values(images: Any, metric: PairedMetric = metric) -> NDArray[np.float64]:
                    return metric.values(*images)

                directory = _paired(first, second) / metric.key
                compute_chunks(directory, count, load, values, **work.phase(metric.name))

    def metrics(self, further: Sequence[PairedMetric]) -> Mapping[str, NDArray[np.float64]]:
        """Reads all paired metrics by name, (N,) each."""
        count = self.reference.count
        columns = np.concatenate([read_chunks(_paired(*pair), count) for pair in self._sets()])
        values = dict(zip(PAIRED, columns.T, strict=True))
        for metric in further:
            parts = [read_chunks(_paired(*pair) / metric.key, count) for pair in self._sets()]
            values[metric.name] = np.concatenate(parts)
        return values

    def latent_mse_by_step(self) -> dict[int, NDArray[np.float64]]:
        """Computes the latent MSE after each denoiser call, (T,), of each image with stored latents, by index.

        It is NaN where a latent is.
        """
        return {
            number * self.reference.count + index: latent_mse(first.latents(index), second.latents(index))
            for number, (first, second) in enumerate(self._sets())
            for index in range(self.reference.count)
            if first.has_latents(index) and second.has_latents(index)
        }

    def _sets(self) -> list[tuple[ImageSet, ImageSet]]:
        return list(zip(self.reference.sets, self.candidate.sets, strict=True))


def _features(images: ImageSet, network: FeatureExtractor) -> Path:
    return images.directory / f"features-{network.digest[:12]}"


def _metric(images: ImageSet, metric: ImageMetric) -> Path:
    return images.directory / f"metric-{metric.key}"


def _texts(images: ImageSet, clip: Clip) -> Path:
    return images.directory / f"texts-{clip.digest[:12]}"


def _paired(reference: ImageSet, candidate: ImageSet) -> Path:
    return candidate.directory / f"pairs-{reference.directory.name}"
