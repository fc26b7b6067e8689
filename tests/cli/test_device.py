"""--device: a card that is none, and machines and jobs that are refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

from bitbrush.artifact.manifest import read_manifest
from tests.fake_card import fake_card

FAST = ("--method", "pcr", "--rounding", "nearest", "--steps", "2", "--num-prompts", "2")


def test_quantizes_and_recalibrates_on_a_card(
    run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, again = tmp_path / "made", tmp_path / "again"
    monkeypatch.setattr("bitbrush.quantization.estimate.available_on_gpu", lambda _: 1 << 40)
    with fake_card(monkeypatch) as card:
        monkeypatch.setattr("bitbrush.session.machine.find_device", lambda _: card)
        done = run("quantize", model, "-o", made, "--prompts", prompts, "--device", "cuda", *FAST)
        assert done.exit_code == 0, done.stderr
        done = run("recalibrate", made, "-o", again, "--prompts", prompts, "--device", "cuda", "--activations", "6")
        assert done.exit_code == 0, done.stderr
    assert read_manifest(again)["recipe"]["activations"] == 6


def test_sensitivities_on_a_card_are_the_processors(
    run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ("--prompts", prompts, "--clip", "emoji-clip", "--steps", 2, "--num-prompts", 2)
    options = ("sensitivity", model, *small, "--activations", 4, "-o")
    assert run(*options, tmp_path / "processor").exit_code == 0
    with fake_card(monkeypatch) as card:
        monkeypatch.setattr("bitbrush.session.machine.find_device", lambda _: card)
        done = run(*options, tmp_path / "card", "--device", "cuda")
        assert done.exit_code == 0, done.stderr
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("processor", "card")]
    assert results[0]["steps"] == results[1]["steps"]


def test_a_card_that_is_full_is_told_of_before_and_then(
    run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 8.00 GiB.")

    monkeypatch.setattr("bitbrush.quantization.estimate.available_on_gpu", lambda _: 0)
    monkeypatch.setattr("bitbrush.quantization.quantize.run", full)
    with fake_card(monkeypatch) as card:
        monkeypatch.setattr("bitbrush.session.machine.find_device", lambda _: card)
        done = run("quantize", model, "-o", tmp_path / "new", "--prompts", prompts, "--device", "cuda", *FAST)
    told = " ".join(done.stderr.split())
    assert done.exit_code == 2
    assert "warning: quantizing takes up to" in told
    assert "error: CUDA out of memory. Tried to allocate 2.00 GiB. Lower the batch size" in told
    assert "total of 8.00" not in told


def test_a_card_that_is_not_used_is_pointed_out(
    run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitbrush.runtime.cuda.package.has_gpu", lambda: True)
    done = run("quantize", model, "-o", tmp_path / "new", "--prompts", prompts, "--dry-run", *FAST)
    assert done.exit_code == 0
    assert "--device cuda computes on it" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_card_that_is_not_there_is_named(
    run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path
) -> None:
    refused = run("quantize", model, "-o", tmp_path / "new", "--prompts", prompts, "--device", "cuda", *FAST)
    assert refused.exit_code == 2
    assert "device is cuda" in refused.stderr
    assert not list(tmp_path.glob("*new*"))


def test_a_dry_run_is_the_processors(
    run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitbrush.session.machine.find_device", torch.device)
    refused = run("quantize", model, "-o", tmp_path / "new", "--prompts", prompts, "--device", "cuda", "--dry-run")
    assert refused.exit_code == 2
    assert "leave --device out" in " ".join(refused.stderr.split())
