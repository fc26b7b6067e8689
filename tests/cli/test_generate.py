"""bitbrush generate: images that depend on prompt and seed alone, and a folder in which nothing is overwritten."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from bitbrush.bench.images.gallery import slug


def pixels(folder: Path) -> dict[tuple[str, int], np.ndarray]:
    table = json.loads((folder / "images.json").read_text(encoding="utf-8"))
    return {(row["prompt"], row["seed"]): np.asarray(Image.open(folder / row["file"])).astype(int) for row in table}


def test_batch_size_and_order_decide_nothing(run: Callable[..., Result], model: Path, tmp_path: Path) -> None:
    """In full precision, where another order of sums moves a pixel by one level at most.

    An artifact would round a value the other way now and then: latents off by 1e-7 move pixels by up to four levels.
    """
    one, other = tmp_path / "one", tmp_path / "other"
    options = ("--num-images", 2, "--seed", 7, "--steps", 2)
    assert run("generate", model, "a cat", "a dog", "-o", one, *options).exit_code == 0
    assert run("generate", model, "a dog", "a cat", "-o", other, *options, "--batch-size", 3).exit_code == 0
    first, second = pixels(one), pixels(other)
    assert set(first) == set(second) == {("a cat", 7), ("a cat", 8), ("a dog", 7), ("a dog", 8)}
    assert all(np.abs(image - second[key]).max() <= 1 for key, image in first.items())
    assert np.abs(first["a cat", 7] - first["a cat", 8]).max() > 1


def test_numbers_go_on_and_nothing_is_overwritten(run: Callable[..., Result], artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    result = run("generate", artifact, "a cat", "-o", folder)
    assert result.stdout.strip() == str(folder / "0000-a-cat.png")
    before = (folder / "0000-a-cat.png").read_bytes()
    (folder / "0001-from-somewhere.png").write_bytes(b"mine")
    run("generate", artifact, "a cat", "-o", folder, "--seed", 5)
    assert sorted(path.name for path in folder.glob("*.png")) == [
        "0000-a-cat.png",
        "0001-from-somewhere.png",
        "0002-a-cat.png",
    ]
    assert (folder / "0000-a-cat.png").read_bytes() == before


def test_any_prompt_becomes_a_file_and_stays_whole_in_the_table(
    run: Callable[..., Result], artifact: Path, tmp_path: Path
) -> None:
    prompts = ["../../etc/passwd / 100 %", "ü" * 500, "狐"]
    result = run("generate", artifact, *prompts, "-o", tmp_path / "images", "--steps", 1)
    assert result.exit_code == 0
    table = json.loads((tmp_path / "images" / "images.json").read_text(encoding="utf-8"))
    assert [row["prompt"] for row in table] == prompts
    assert [row["file"] for row in table] == [f"{i:04d}-{slug(p)}.png" for i, p in enumerate(prompts)]
    assert max(len(row["file"]) for row in table) < 64
    assert "tokens, the text encoder takes 32" in " ".join(result.stderr.split())
    assert not list(tmp_path.rglob("*.part"))


def test_plan_is_the_calibrated_one_unless_asked(run: Callable[..., Result], artifact: Path, tmp_path: Path) -> None:
    run("generate", artifact, "a cat", "-o", tmp_path / "images")
    run("generate", artifact, "a cat", "-o", tmp_path / "images", "--steps", 3, "--scheduler", "euler")
    plans = json.loads((tmp_path / "images" / "images.json").read_text(encoding="utf-8"))
    assert [(row["steps"], row["scheduler"]) for row in plans] == [(2, "PNDMScheduler"), (3, "EulerDiscreteScheduler")]


def test_full_precision_models_too(run: Callable[..., Result], model: Path, tmp_path: Path) -> None:
    assert run("generate", model, "a cat", "-o", tmp_path / "images", "--steps", 1).exit_code == 0


def test_a_picture_of_one_colour_is_told(
    run: Callable[..., Result], artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitbrush.bench.images.generation.np.round", np.zeros_like)
    result = run("generate", artifact, "a cat", "-o", tmp_path / "images", "--steps", 1)
    assert "(prompt 'a cat', seed 0) is all of one colour" in " ".join(result.stderr.split())


def test_latents_that_break_are_told_with_their_prompt(
    refused: Callable[..., str], artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitbrush.bench.images.generation.np.isfinite", lambda x: np.zeros_like(x, dtype=bool))
    said = refused("generate", artifact, "a cat", "-o", tmp_path / "images")
    assert "the latents of prompt 'a cat' (seed 0) hold NaN or infinity after denoiser call 0" in said
    assert not list(tmp_path.glob("images/*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a cat", "--scheduler", "dice"), "scheduler is 'dice'; known are"),
        (("a cat", "--steps", 0), "steps is 0; it must be a whole number from 1 to "),
        ((" ",), "a prompt is empty"),
    ],
)
def test_bad_input_is_refused(
    refused: Callable[..., str], artifact: Path, tmp_path: Path, arguments: tuple, message: str
) -> None:
    assert message in refused("generate", artifact, *arguments, "-o", tmp_path / "images")
    assert not (tmp_path / "images").exists()


def test_a_foreign_folder_is_refused(refused: Callable[..., str], artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.png").write_bytes(b"mine")
    assert "exists and holds no images.json" in refused("generate", artifact, "a cat", "-o", tmp_path / "mine")


def test_damaged_artifacts_are_refused(refused: Callable[..., str], artifact: Path, tmp_path: Path) -> None:
    weights = artifact / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        weights.write_bytes(damaged)
        said = refused("generate", artifact, "a cat", "-o", tmp_path / "images")
        assert "diffusion_pytorch_model.safetensors was altered or truncated" in said
    weights.write_bytes(whole)
    manifest = artifact / "manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"schema_version": 1', '"schema_version": 9'))
    said = refused("generate", artifact, "a cat", "-o", tmp_path / "images")
    assert "has schema version 9, and this one reads up to 1; upgrade bitbrush" in said
    assert not (tmp_path / "images").exists()
