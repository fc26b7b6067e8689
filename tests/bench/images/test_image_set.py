"""Image sets keep what they are given, know what belongs together, and say what is wrong with a folder."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bitbrush.bench.images.image_set import ImageSet, ImageSetError
from bitbrush.timeline.trajectory import noise_seeds

PROMPTS = ("a red cat", "a / b \\ c: *?", "é" * 250, "a red cat")
MADE_BY = {"model": "abc", "plan": {"steps": 2}}


def opened(root: Path, prompts: tuple[str, ...] = PROMPTS, seed: int = 1, **made_by: object) -> ImageSet:
    return ImageSet.open(root, "set", prompts, seed=seed, made_by={**MADE_BY, **made_by})


def picture(value: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(value).integers(0, 256, (size, size, 3), dtype=np.uint8)


def test_keeps_pictures_and_latents_to_the_last_bit(tmp_path: Path) -> None:
    steps = np.random.default_rng(0).normal(size=(3, 4, 2, 2)).astype(np.float32)
    images = opened(tmp_path)
    images.add(0, picture(0), steps)
    images.add(1, picture(1), None)
    again = opened(tmp_path)
    np.testing.assert_array_equal(again.images(range(2)), np.stack([picture(0), picture(1)]))
    np.testing.assert_array_equal(again.latents(0), steps)
    assert [again.has(index) for index in range(4)] == [True, True, False, False]
    assert [again.has_latents(index) for index in range(2)] == [True, False]


def test_the_table_loses_nothing_of_a_prompt(tmp_path: Path) -> None:
    images = opened(tmp_path)
    rows = [json.loads(line) for line in (images.directory / "prompts.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == list(PROMPTS)
    assert [row["noise"] for row in rows] == list(noise_seeds(PROMPTS, 1)) == list(images.noise)
    images.add(2, picture(2), None)
    assert Image.open(images.directory / "00002.png").text["prompt"] == PROMPTS[2]


def test_whatever_decides_the_pictures_has_a_folder_of_its_own(tmp_path: Path) -> None:
    sets = [
        opened(tmp_path),
        opened(tmp_path, PROMPTS[:3]),
        opened(tmp_path, seed=2),
        opened(tmp_path, model="other"),
        opened(tmp_path, plan={"steps": 3}),
    ]
    assert len({one.directory for one in sets}) == len(sets)
    assert opened(tmp_path).directory == sets[0].directory


def test_a_table_of_another_length_is_refused(tmp_path: Path) -> None:
    table = opened(tmp_path).directory / "prompts.jsonl"
    table.write_text("\n".join(table.read_text().splitlines()[:2]))
    with pytest.raises(ImageSetError, match=r"lists 2 prompts, the set has 4.*delete the directory"):
        opened(tmp_path)


@pytest.mark.parametrize("file", ["prompts.jsonl", "set.json"])
def test_altered_or_damaged_tables_are_refused(tmp_path: Path, file: str) -> None:
    path = opened(tmp_path).directory / file
    whole = path.read_text()
    path.write_text(whole.replace("red", "blue").replace('"seed": 1', '"seed": 7'))
    with pytest.raises(ImageSetError, match="was altered"):
        opened(tmp_path)
    path.write_text(whole[:-20])
    with pytest.raises(ImageSetError, match="damaged"):
        opened(tmp_path)


def test_missing_damaged_and_unlike_pictures_are_named(tmp_path: Path) -> None:
    images = opened(tmp_path)
    images.add(0, picture(0), None)
    with pytest.raises(ImageSetError, match=r"00001\.png is missing"):
        images.images(range(2))
    images.add(1, picture(1, size=9), None)
    with pytest.raises(ImageSetError, match=r"00001\.png has shape \(9, 9, 3\)"):
        images.images(range(2))
    (images.directory / "00001.png").write_bytes((images.directory / "00000.png").read_bytes()[:60])
    with pytest.raises(ImageSetError, match=r"00001\.png is no readable PNG"):
        images.image(1)
