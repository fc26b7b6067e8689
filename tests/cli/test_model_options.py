"""Options of the model, on every command that measures against it; and what is told of a model that is none."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tests.cli.conftest import FAST
from tests.sources.test_lora import LAYER, written


@pytest.fixture
def peft() -> None:
    pytest.importorskip("peft", reason="the extra 'lora' is not installed")


@pytest.mark.usefixtures("peft")
def test_measured_against_the_model_with_its_lora(
    run: Callable[..., Result], refused: Callable[..., str], model: Path, prompts: Path, tmp_path: Path
) -> None:
    lora = f"{written(tmp_path / 'style.safetensors', LAYER)}@0.5"
    assert run("quantize", model, "-o", tmp_path / "a", "--prompts", prompts, *FAST, "--lora", lora).exit_code == 0
    given = (model, tmp_path / "a", "--prompts", prompts, "--runtime", "reference")
    assert "LoRA style.safetensors@0.5" in refused("compare", *given)
    assert "was fused into it and is not given: add --lora FILE@0.5" in refused(
        "plans", *given, "--no-recalibration", "-o", tmp_path / "g"
    )
    assert run("compare", *given, "--lora", lora).exit_code == 0
    small = ("--clip", "emoji-clip", "--num-images", 3, "--latents", 2)
    assert run("bench", *given, *small, "-o", tmp_path / "b", "--lora", lora).exit_code == 0
    results = json.loads((tmp_path / "b" / "results.json").read_text(encoding="utf-8"))
    assert results["reference"]["notes"] == ["with LoRA style.safetensors, scale 0.5"]
    assert results["candidates"][0]["problem"] is None
    plan = ("--steps", "2", "--schedulers", "ddim", "--no-recalibration")
    assert run("plans", *given, *plan, "-o", tmp_path / "g", "--lora", lora).exit_code == 0


@pytest.mark.parametrize("command", ["compare", "bench", "plans", "quantize", "sensitivity"])
def test_an_unknown_model_is_told_before_missing_prompts(
    refused: Callable[..., str], artifact: Path, tmp_path: Path, command: str
) -> None:
    candidate = (artifact,) if command in ("compare", "bench", "plans") else ()
    output = ("-o", tmp_path / "o") if command != "compare" else ()
    message = refused(command, "emoji-sx", *candidate, *output)
    assert "model 'emoji-sx' is neither bundled" in message
    assert "prompts" not in message
