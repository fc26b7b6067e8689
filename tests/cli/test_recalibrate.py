"""bitbrush recalibrate."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tests.cli.conftest import manifest_of


def test_makes_an_artifact_for_another_plan(
    run: Callable[..., Result], artifact: Path, prompts: Path, tmp_path: Path
) -> None:
    options = ("--steps", 3, "--scheduler", "dpmpp_2m", "--prompts", prompts)
    result = run("recalibrate", artifact, "-o", tmp_path / "new", *options)
    assert result.exit_code == 0, result.stderr
    assert "dpmpp_2m, 3 steps, guidance 7.5, 2 prompts" in result.stderr
    assert f"bitbrush generate {tmp_path / 'new'}" in result.stdout
    plan = manifest_of(tmp_path / "new")["plan"]
    assert (plan["scheduler"], len(plan["timesteps"])) == ("DPMSolverMultistepScheduler", 3)
    assert run("generate", tmp_path / "new", "a cat", "-o", tmp_path / "drawn").exit_code == 0


def test_refuses_what_it_cannot_do(
    refused: Callable[..., str], model: Path, artifact: Path, prompts: Path, tmp_path: Path
) -> None:
    new = ("-o", tmp_path / "new")
    assert "is no bitbrush artifact" in refused("recalibrate", model, *new, "--prompts", prompts)
    assert "has no prompts of its own" in refused("recalibrate", artifact, *new)
    options = ("--prompts", prompts, "--steps", 0)
    assert "steps is 0; it must be a whole number from 1 to " in refused("recalibrate", artifact, *new, *options)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine").touch()
    assert "exists and is no bitbrush artifact to replace" in refused("recalibrate", artifact, *new, *options[:2])


def test_replaces_its_own_artifact_when_told_to(
    run: Callable[..., Result], refused: Callable[..., str], artifact: Path, prompts: Path
) -> None:
    command = ("recalibrate", artifact, "-o", artifact, "--steps", 3, "--prompts", prompts)
    assert "holds an artifact; give --overwrite to replace it" in refused(*command)
    assert manifest_of(artifact)["recipe"]["steps"] == 2
    assert run(*command, "--overwrite").exit_code == 0
    assert manifest_of(artifact)["recipe"]["steps"] == 3
    assert [path.name for path in artifact.parent.iterdir()] == ["artifact"]
    assert run("inspect", artifact).exit_code == 0


def test_a_disk_without_room_is_known_before_anything_is_loaded(
    refused: Callable[..., str], artifact: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitbrush.artifact.recalibration.recalibrate", None)
    monkeypatch.setattr("bitbrush.session.disk.available_disk", lambda _: 5 << 10)
    said = refused("recalibrate", artifact, "-o", tmp_path / "new", "--prompts", prompts)
    assert "new cannot be written: the disk has 5 KiB left of the" in said
