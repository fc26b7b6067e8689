"""The command line on pipelines that want more than a prompt."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from bitbrush import load_full_precision
from bitbrush.sources.identity import model_digest
from tests.artifact.original_layout import original_layout
from tests.artifact.pipelines import CASES, UNKNOWN, Case, picture, pipeline
from tests.cli.conftest import FAST, manifest_of


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Case], Path]:
    def save(case: Case) -> Path:
        pipeline(case).save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return save


def test_inpainting_from_folders_of_pictures(
    run: Callable[..., Result], saved: Callable[[Case], Path], prompts: Path, tmp_path: Path
) -> None:
    for kind, name in (("images", "image"), ("masks", "mask_image")):
        (tmp_path / kind).mkdir()
        for seed in (0, 1):
            picture(seed, name).save(tmp_path / kind / f"{seed}.png")
    size = ("--pipeline-argument", "height=16", "--pipeline-argument", "width=16")
    pictures = ("--images", tmp_path / "images", "--masks", tmp_path / "masks")
    model = saved(CASES["sd-inpainting"])
    made = run("quantize", model, "-o", tmp_path / "a", "--prompts", prompts, *FAST, *size, *pictures)
    assert made.exit_code == 0, made.stderr
    assert manifest_of(tmp_path / "a")["recipe"]["pipeline_arguments"] == {"height": 16, "width": 16}
    assert "--pipeline-argument height=16" in (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    one = ("--image", tmp_path / "images" / "0.png", "--mask", tmp_path / "masks" / "0.png")
    drawn = run("generate", tmp_path / "a", "a cat", "a dog", *one, "-o", tmp_path / "drawn")
    assert drawn.exit_code == 0, drawn.stderr
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 2


def test_pictures_that_are_missing(
    refused: Callable[..., str], saved: Callable[[Case], Path], prompts: Path, tmp_path: Path
) -> None:
    model = saved(CASES["sdxl-refiner"])
    message = refused("quantize", model, "-o", tmp_path / "a", "--prompts", prompts, *FAST)
    assert "StableDiffusionXLImg2ImgPipeline makes images from images; give image" in message
    assert "--images" in message


def test_generic_is_asked_for(
    run: Callable[..., Result],
    refused: Callable[..., str],
    saved: Callable[[Case], Path],
    prompts: Path,
    tmp_path: Path,
) -> None:
    options = ("--prompts", prompts, *FAST)
    for name, value in UNKNOWN.keys["pipeline_arguments"].items():
        options += ("--pipeline-argument", f"{name}={value}")
    model = saved(UNKNOWN)
    assert "With --generic" in refused("quantize", model, "-o", tmp_path / "a", *options)
    assert run("quantize", model, "-o", tmp_path / "a", *options, "--generic").exit_code == 0
    assert run("generate", tmp_path / "a", "a cat", "-o", tmp_path / "drawn").exit_code == 0


def test_a_model_in_one_file(
    run: Callable[..., Result], refused: Callable[..., str], model: Path, prompts: Path, tmp_path: Path
) -> None:
    save_file(original_layout(StableDiffusionPipeline.from_pretrained(model)), tmp_path / "m.safetensors")
    options = ("-o", tmp_path / "a", "--prompts", prompts, *FAST)
    assert "give the pipeline folder that it belongs to with --config" in refused(
        "quantize", tmp_path / "m.safetensors", *options
    )
    made = run("quantize", tmp_path / "m.safetensors", *options, "--config", model)
    assert made.exit_code == 0, made.stderr
    assert manifest_of(tmp_path / "a")["base_model_options"] == {"config": model.name}
    assert manifest_of(tmp_path / "a")["base_model_digest"] == model_digest(load_full_precision(model))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--revision", "main"), "revision is 'main', but"),
        (("--config", "somewhere"), "config is 'somewhere', but"),
        (("--lora", "missing.safetensors"), "LoRA missing.safetensors is no file"),
        (("--lora", "a@b"), "expected FILE or FILE@SCALE"),
    ],
)
def test_options_of_the_model_that_do_not_fit(
    refused: Callable[..., str], model: Path, prompts: Path, tmp_path: Path, option: tuple[str, ...], message: str
) -> None:
    assert message in refused("quantize", model, "-o", tmp_path / "a", "--prompts", prompts, *FAST, *option)
