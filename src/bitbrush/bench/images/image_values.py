"""What is computed from pictures and kept beside them: features, paired metrics, defects."""

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
    """Who computes, and who is told."""

    ranks: Ranks
    progress: Progress


@dataclass(frozen=True)
class ImageSets:
    """One pipeline's pictures for one prompt set: ``count`` of each of its image sets, which are one per seed."""

    sets: tuple[ImageSet, ...]
    count: int

    @property
    def prompts(self) -> tuple[str, ...]:
        """Of every picture, in the order of all figures: all of the first seed, then of the second."""
        return tuple(prompt for one in self.sets for prompt in one.prompts[: self.count])

    def image(self, index: int) -> NDArray[np.uint8]:
        return self.sets[index // self.count].image(index % self.count)

    def seed(self, index: int) -> int:
        return self.sets[index // self.count].seed

    def compute_features(self, network: FeatureExtractor, work: Work) -> None:
        for one in self.sets:
            directory = _features(one, network)
            compute_chunks(directory, self.count, one.images, network.features, **_told(work, "picture features"))

    def features(self, network: FeatureExtractor) -> NDArray[np.float32]:
        """``(N, D)``"""
        return np.concatenate([read_chunks(_features(one, network), self.count) for one in self.sets])

    def compute_metric(self, metric: ImageMetric, work: Work) -> None:
        """Computes a metric of single images."""
        for one in self.sets:
            directory = one.directory / f"metric-{metric.key}"
            compute_chunks(directory, self.count, one.images, metric.values, **_told(work, metric.name))

    def metric(self, metric: ImageMetric) -> NDArray[np.float64]:
        """Reads the values of a metric of single images, (N,)."""
        return np.concatenate([read_chunks(one.directory / f"metric-{metric.key}", self.count) for one in self.sets])

    def compute_texts(self, clip: Clip, work: Work) -> None:
        for one in self.sets:
            compute_chunks(
                _texts(one, clip),
                self.count,
                lambda chunk, one=one: [one.prompts[index] for index in chunk],  # type: ignore[misc]
                clip.text_features,
                **_told(work, "text features"),
            )

    def texts(self, clip: Clip) -> NDArray[np.float32]:
        """``(N, D)``"""
        return np.concatenate([read_chunks(_texts(one, clip), self.count) for one in self.sets])

    def compute_defects(self, work: Work) -> None:
        def codes(images: NDArray[np.uint8]) -> NDArray[np.int8]:
            return np.array([_DEFECTS.index(defect) for defect in defects(images)], dtype=np.int8)

        for one in self.sets:
            compute_chunks(
                one.directory / "defects", self.count, one.images, codes, **_told(work, "looking for defects")
            )

    def defects(self) -> dict[int, str]:
        """By index, of those pictures that have one."""
        codes = np.concatenate([read_chunks(one.directory / "defects", self.count) for one in self.sets])
        return {int(index): _DEFECTS[codes[index]] for index in np.flatnonzero(codes)}


@dataclass(frozen=True)
class ImagePairs:
    """A candidate's pictures with the reference's of the same prompts and noise."""

    reference: ImageSets
    candidate: ImageSets

    def compute(self, further: Sequence[PairedMetric], work: Work) -> None:
        """Computes the built-in paired metrics and ``further`` ones."""

        def built_in(images: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> NDArray[np.float64]:
            return np.stack([metric(*images) for metric in PAIRED.values()], axis=1)

        for first, second in self._sets():

            def load(chunk: range, first: ImageSet = first, second: ImageSet = second) -> Any:
                return first.images(chunk), second.images(chunk)

            count = self.reference.count
            compute_chunks(_paired(first, second), count, load, built_in, **_told(work, "pairs"))
            for metric in further:

                def values(images: Any, metric: PairedMetric = metric) -> NDArray[np.float64]:
                    return metric.values(*images)

                directory = _paired(first, second) / metric.key
                compute_chunks(directory, count, load, values, **_told(work, metric.name))

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
        """``(T,)`` of every picture whose latents both sides kept, by index; NaN where a latent is."""
        return {
            number * self.reference.count + index: latent_mse(first.latents(index), second.latents(index))
            for number, (first, second) in enumerate(self._sets())
            for index in range(self.reference.count)
            if first.has_latents(index) and second.has_latents(index)
        }

    def _sets(self) -> list[tuple[ImageSet, ImageSet]]:
        return list(zip(self.reference.sets, self.candidate.sets, strict=True))


def _told(work: Work, phase: str) -> dict[str, Any]:
    return {"phase": phase, "ranks": work.ranks, "progress": work.progress}


def _features(one: ImageSet, network: FeatureExtractor) -> Path:
    return one.directory / f"features-{network.digest[:12]}"


def _texts(one: ImageSet, clip: Clip) -> Path:
    return one.directory / f"texts-{clip.digest[:12]}"


def _paired(reference: ImageSet, candidate: ImageSet) -> Path:
    return candidate.directory / f"pairs-{reference.directory.name}"
