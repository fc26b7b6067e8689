"""bitbrush quantize --dry-run: the plan, and nothing else; and the refusal of what cannot fit."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from bitbrush.quantization import estimate

PLAN = ("--method", "pcr", "--steps", "3", "--num-prompts", "3", "--batch-size", "2", "--exclude", "*attn2.to_k")


def test_prints_the_plan_and_writes_nothing(
    run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path
) -> None:
    result = run("quantize", model, "-o", tmp_path / "new", "--prompts", prompts, *PLAN, "--dry-run")
    assert result.exit_code == 0
    assert "recording 1 4 4" in " ".join(result.stdout.split())
    assert "progressive calibration 2 8 16" in " ".join(result.stdout.split())
    for text in (
        "left in floating point (recipe: exclude *attn2.to_k): ",
        "16 at every step",
        "8, relaxed 0.8:1@10",
        "in floating point: vae, text_encoder",
        "memory: ",
        "disk: ",
        "nothing was written",
    ):
        assert text in result.stdout
    assert "it would be refused" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_measured_bits_are_planned(run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path) -> None:
    measured = ("--weight-allocation", "measured", "--relax", "auto:6.5")
    result = run("quantize", model, "-o", tmp_path / "new", "--prompts", prompts, *PLAN, *measured, "--dry-run")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert "measured, 4 on average measured, 6.5 on average" in text
    assert "sensitivity 1 " in text
    assert "it would be refused" not in result.stderr


def test_branches_are_planned(run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path) -> None:
    keys = ("--weight-allocation", "measured", "--low-rank", "4")
    result = run("quantize", model, "-o", tmp_path / "new", "--prompts", prompts, *PLAN, *keys, "--dry-run")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert "branches - - -" in text  # found without a denoiser call, before the sensitivities
    assert text.index("branches - - -") < text.index("sensitivity 1 ") < text.index("progressive calibration 2 8 16")


def test_what_does_not_fit_is_named(
    run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "available_memory", lambda: 1 << 20)
    result = run("quantize", model, "-o", tmp_path / "new", "--prompts", prompts, *PLAN, "--dry-run")
    assert result.exit_code == 0
    assert "it would be refused: " in result.stderr


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("available_memory", "of memory beside what is loaded, 0 MiB are available; lower"),
        ("available_disk", "for unfinished work beside it, 0 MiB are free; make room there, or choose another output"),
    ],
)
def test_what_cannot_fit_is_refused(
    refused: Callable[..., str],
    model: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    message: str,
) -> None:
    monkeypatch.setattr(estimate, what, lambda *_: 0)
    assert message in refused("quantize", model, "-o", tmp_path / "new", "--prompts", prompts, *PLAN)
    assert not list(tmp_path.iterdir())


def test_what_is_refused_without_is_refused_with(
    refused: Callable[..., str], model: Path, prompts: Path, tmp_path: Path
) -> None:
    said = refused("quantize", model, "-o", tmp_path / "new", "--prompts", prompts, "--dry-run", "--num-prompts", 9)
    assert "num_prompts is 9, but only 3 calibration prompts are given" in said
