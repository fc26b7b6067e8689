"""Images of one model for one list of prompts, stored as PNG files beside a table of their prompts."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from bitbrush.session.digests import json_digest
from bitbrush.session.disk import write_whole
from bitbrush.timeline.trajectory import noise_seeds

SCHEMA_VERSION = 1
FACTS, TABLE = "set.json", "prompts.jsonl"
COMPRESSION = 1  # of PNG files: a third of the default level's time, a tenth more bytes


class ImageSetError(ValueError):
    """The directory lacks an image, or was altered."""


@dataclass(frozen=True)
class ImageSet:
    """Images named by their prompt's index, ``00000.png`` and so on, some with latents after each denoiser call.

    Two sets of equal prompts and seed are pairs, because the noise depends on seed and prompt alone.

    Args:
        directory: Folder of the images.
        prompts: Prompt of each image.
        seed: Seed of the run; :attr:`noise` has the seed of each image.
    """

    directory: Path
    prompts: tuple[str, ...]
    seed: int

    @classmethod
    def open(
        cls, root: Path, name: str, prompts: Sequence[str], *, seed: int, made_by: Mapping[str, Any]
    ) -> "ImageSet":
        """Opens the set of these prompts, seed and facts below ``root``, or creates it.

        Args:
            root: Folder of image sets.
            name: Start of the directory's name.
            prompts: Prompt of each image.
            seed: Seed of the run.
            made_by: JSON values that determine the images: digest of the model, sampling plan. The directory's name
                has their hash, so images of two models never mix.

        Raises:
            ImageSetError: The table was altered.
        """
        facts = {"schema_version": SCHEMA_VERSION, "seed": seed, "prompts": json_digest(list(prompts)), **made_by}
        images = cls(root / f"{name}-seed{seed}-{json_digest(facts)[:12]}", tuple(prompts), seed)
        if (images.directory / FACTS).exists():
            images._require_unaltered(facts)
        else:
            rows = zip(range(len(prompts)), images.noise, prompts, strict=True)
            table = [json.dumps({"index": i, "noise": seed, "prompt": prompt}) for i, seed, prompt in rows]
            write_whole("\n".join(table) + "\n", images.directory / TABLE)
            write_whole(json.dumps(facts, indent=1) + "\n", images.directory / FACTS)
        return images

    @property
    def noise(self) -> tuple[int, ...]:
        """Seed of every image's initial noise."""
        return noise_seeds(self.prompts, self.seed)

    def has(self, index: int) -> bool:
        """Whether an image is there."""
        return self._png(index).exists()

    def add(self, index: int, image: NDArray[np.uint8], steps: NDArray[np.float32] | None) -> None:
        """Stores the latents (T, C, H, W) of an image, if any, and then the image (H, W, 3)."""
        if steps is not None:
            write_whole(save({"steps": steps}), self._steps(index))
        text = PngImagePlugin.PngInfo()
        text.add_itxt("prompt", self.prompts[index])
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG", compress_level=COMPRESSION, pnginfo=text)
        write_whole(buffer.getvalue(), self._png(index))

    def add_seconds(self, start: int, seconds: float) -> None:
        """Stores the seconds per image of the batch that starts with an image."""
        write_whole(json.dumps(seconds), self._seconds(start))

    def seconds(self) -> list[float]:
        """Reads the seconds per image of every batch that was timed."""
        return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.directory.glob("*.seconds"))]

    def images(self, indices: range) -> NDArray[np.uint8]:
        """Reads images, (n, H, W, 3).

        Raises:
            ImageSetError: An image is missing, unreadable or of another size.
        """
        images = [self.image(index) for index in indices]
        for index, image in zip(indices, images, strict=True):
            if image.shape != images[0].shape:
                raise ImageSetError(
                    f"{self._png(index)} has shape {image.shape}, {self._png(indices[0])} has {images[0].shape}; "
                    "delete the wrong one and run again"
                )
        return np.stack(images)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Reads an image, (H, W, 3).

        Raises:
            ImageSetError: The image is missing or unreadable.
        """
        path = self._png(index)
        try:
            with Image.open(path) as image:
                pixels: NDArray[np.uint8] = np.asarray(image.convert("RGB"))
                return pixels
        except FileNotFoundError:
            raise ImageSetError(f"{path} is missing; run again to generate it") from None
        except (UnidentifiedImageError, OSError, SyntaxError) as error:  # Pillow's parser raises SyntaxError
            raise ImageSetError(f"{path} is no readable PNG ({error}); delete it and run again") from error

    def latents(self, index: int) -> NDArray[np.float32]:
        """Reads the latents after each denoiser call, (T, C, H, W).

        Raises:
            ImageSetError: The file is damaged.
        """
        path = self._steps(index)
        try:
            steps: NDArray[np.float32] = load_file(path)["steps"]
        except (OSError, KeyError, SafetensorError) as error:
            raise ImageSetError(f"{path} is damaged ({error}); delete it and its image, run again") from error
        return steps

    def has_latents(self, index: int) -> bool:
        """Whether the latents of an image are there."""
        return self._steps(index).exists()

    def _png(self, index: int) -> Path:
        return self.directory / f"{index:05d}.png"

    def _steps(self, index: int) -> Path:
        return self.directory / f"{index:05d}.safetensors"

    def _seconds(self, start: int) -> Path:
        return self.directory / f"{start:05d}.seconds"

    def _require_unaltered(self, facts: Mapping[str, Any]) -> None:
        try:
            recorded = json.loads((self.directory / FACTS).read_text(encoding="utf-8"))
            rows = [json.loads(line) for line in (self.directory / TABLE).read_text(encoding="utf-8").splitlines()]
            prompts = tuple(row["prompt"] for row in rows)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ImageSetError(f"{self.directory} is damaged ({error}); delete it and run again") from error
        if len(prompts) != len(self.prompts):
            raise ImageSetError(
                f"{self.directory / TABLE} lists {len(prompts)} prompts, the set has {len(self.prompts)}; it was "
                "altered: delete the directory and run again"
            )
        if recorded != dict(facts) or prompts != self.prompts:
            raise ImageSetError(f"{self.directory} was altered: delete it and run again")
