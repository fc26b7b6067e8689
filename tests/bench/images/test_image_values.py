"""Values of images are computed chunk by chunk: memory does not grow with the number of images."""

import tracemalloc
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch

from bitbrush.bench.images.chunks import CHUNK, compute_chunks
from bitbrush.bench.images.image_set import ImageSet
from bitbrush.bench.images.image_values import ImagePairs, ImageSets, Work
from bitbrush.bench.networks.clip import Clip, load_clip
from bitbrush.session.progress import silent
from bitbrush.session.ranks import Ranks

ALONE = Work(Ranks(), silent)
SIZE = 64


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("emoji-clip", torch.device("cpu"))


def collection(root: Path, name: str, count: int) -> ImageSets:
    images = ImageSet.open(root, name, [f"picture {i}" for i in range(count)], seed=1, made_by={"model": name})
    rng = np.random.default_rng(len(name))
    for index in range(count):
        images.add(index, rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8), None)
    return ImageSets((images,), count)


def peak_bytes(root: Path, count: int, clip: Clip) -> int:
    """Most that numpy held at once while all there is was computed of ``count`` pairs."""
    reference, candidate = (collection(root, name, count) for name in ("first", "second"))
    tracemalloc.start()
    try:
        for one in (reference, candidate):
            one.compute_features(clip, ALONE)
            one.compute_texts(clip, ALONE)
            one.compute_defects(ALONE)
        ImagePairs(reference, candidate).compute((), ALONE)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_pairs(tmp_path: Path, clip: Clip) -> None:
    peak_bytes(tmp_path / "warm", 2 * CHUNK, clip)  # imports and caches count once
    few = peak_bytes(tmp_path / "few", 2 * CHUNK, clip)
    limit = few + 4 * CHUNK * SIZE * SIZE * 3 / 2  # half of one side, as bytes: a chunk or two may be read ahead
    many = peak_bytes(tmp_path / "many", 6 * CHUNK, clip)
    if many >= limit:  # what happens to run once in this process (a late import, a collection) does not come again
        many = peak_bytes(tmp_path / "again", 6 * CHUNK, clip)
    assert many < limit


def test_images_are_read_while_the_network_computes(tmp_path: Path) -> None:
    second_is_read = Event()

    def load(chunk: range) -> range:
        if chunk.start:
            second_is_read.set()
        return chunk

    def compute(chunk: range) -> np.ndarray:
        assert second_is_read.wait(30)  # it would never be, were it read after the first is computed
        return np.array(chunk)

    compute_chunks(tmp_path, 2 * CHUNK, load, compute, phase="x", ranks=Ranks(), progress=silent)
