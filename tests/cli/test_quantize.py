"""bitbrush quantize: what it makes and says, which key wins, and every input it refuses."""

import errno
import json
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
FAST = ("--method", "pcr", "--rounding", "nearest", "--steps", "2", "--num-prompts", "2")
MIDDLE = ("--exclude", "down_blocks.*", "--exclude", "up_blocks.*")
"""Leaves a third of the layers, whose bits are measured in less time."""


def recipe_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["recipe"]


def test_the_best_method_is_the_default(run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path) -> None:
    result = run("quantize", model, "-o", tmp_path / "new", "--prompts", prompts, *FAST[2:], *MIDDLE)
    assert result.exit_code == 0
    assert "best, 4-bit weights, measured by layer (nearest rounding), 8-bit activations" in result.stderr
    assert "sensitivity" in result.stdout


def test_makes_an_artifact_and_says_what_it_is(
    run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path
) -> None:
    result = run("quantize", model, "-o", tmp_path / "new", "--prompts", prompts, *FAST)
    assert result.exit_code == 0
    for text in ("progressive calibration", "6", "layers quantized", "MiB", f"bitbrush generate {tmp_path / 'new'}"):
        assert text in result.stdout
    assert "pcr, 4-bit weights (nearest rounding), 8-bit activations, relaxed 0.8:1@10" in result.stderr
    assert recipe_of(tmp_path / "new")["steps"] == 2


def test_one_file_serves_the_commands(run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path) -> None:
    single = tmp_path / "one.safetensors"
    command = ("quantize", model, "-o", single, "--prompts", prompts, *FAST)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("bitbrush.artifact.store.pack", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*command).exit_code == 130
    assert not single.exists()
    result = run(*command)
    assert result.exit_code == 0, result.stderr
    assert "going on with" in result.stderr
    assert f"bitbrush generate {single}" in result.stdout
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".one", "one"))] == ["one.safetensors"]
    assert run("verify", single).exit_code == 0
    assert run("generate", single, "a red cat", "-o", tmp_path / "images", "--steps", 1).exit_code == 0
    again = run("recalibrate", single, "-o", tmp_path / "again", "--prompts", prompts, "--steps", 1)
    assert again.exit_code == 0, again.stderr
    assert "holds an artifact; give --overwrite" in run(*command).stderr
    assert run(*command, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("recipe.toml", 'weights = 3\nactivations = 6\nsteps = 2\nnum_prompts = 1\nrounding = "nearest"\n'),
        ("recipe.json", '{"weights": 3, "activations": 6, "steps": 2, "num_prompts": 1, "rounding": "nearest"}'),
    ],
)
def test_options_come_before_the_file_and_the_file_before_the_method(
    run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path, file: str, text: str
) -> None:
    (tmp_path / file).write_text(text, encoding="utf-8")
    options = ("--recipe", tmp_path / file, "--prompts", prompts, "--weights", 5, "--exclude", "conv_in", *MIDDLE)
    assert run("quantize", model, "-o", tmp_path / "new", *options).exit_code == 0
    recipe = recipe_of(tmp_path / "new")
    assert (recipe["weights"], recipe["activations"], recipe["steps"]) == (5, 6, 2)
    assert (recipe["method"], recipe["relax"]) == ("best", "auto:6.4")
    assert recipe["exclude"] == ["conv_in", "down_blocks.*", "up_blocks.*"]


def test_a_method_from_the_file_brings_its_defaults(
    run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path
) -> None:
    (tmp_path / "r.toml").write_text('method = "rtn"\nsteps = 2\nnum_prompts = 1\n', encoding="utf-8")
    options = ("--recipe", tmp_path / "r.toml", "--prompts", prompts)
    assert run("quantize", model, "-o", tmp_path / "new", *options).exit_code == 0
    recipe = recipe_of(tmp_path / "new")
    assert (recipe["method"], recipe["relax"], recipe["activation_range"]) == ("rtn", "none", "min-max")


def test_replaces_an_artifact_when_told_to(
    run: Callable[..., Result], refused: Callable[..., str], model: Path, prompts: Path, artifact: Path
) -> None:
    command = ("quantize", model, "-o", artifact, "--prompts", prompts, *FAST, "--relax", "none")
    before = recipe_of(artifact)
    assert "holds an artifact; give --overwrite to replace it" in refused(*command)
    assert recipe_of(artifact) == before
    assert run(*command, "--dry-run").exit_code == 0
    assert run(*command, "--overwrite").exit_code == 0
    assert recipe_of(artifact)["relax"] == "none"
    assert [path.name for path in artifact.parent.iterdir()] == ["artifact"]


def test_until_the_new_one_is_complete_the_old_one_stays(
    run: Callable[..., Result], model: Path, prompts: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("quantize", model, "-o", artifact, "--prompts", prompts, *FAST, "--relax", "none", "--overwrite")
    before = recipe_of(artifact)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    for moment in ("bitbrush.session.journal.Journal.write", "bitbrush.artifact.store._write"):
        with monkeypatch.context() as patched:
            patched.setattr(moment, interrupted)
            result = run(*command)
        assert result.exit_code == 130
        assert "left behind; run the same command again to go on from what is finished" in result.stderr
        assert recipe_of(artifact) == before
    assert run(*command).exit_code == 0
    assert recipe_of(artifact)["relax"] == "none"
    assert [path.name for path in artifact.parent.iterdir()] == ["artifact"]


def test_another_recipes_work_is_known_before_anything_is_loaded(
    run: Callable[..., Result],
    refused: Callable[..., str],
    model: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ("quantize", model, "-o", tmp_path / "new", "--prompts", prompts, *FAST)
    with monkeypatch.context() as patched:
        patched.setattr("bitbrush.artifact.store._write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*command).exit_code == 130
    monkeypatch.setattr("bitbrush.sources.models.load_source", None)
    said = refused(*command, "--weights", 3)
    assert "holds unfinished work for another recipe (weights is 4 there and 3 here)" in said
    (tmp_path / "others.txt").write_text("a fish\na bird\n", encoding="utf-8")
    assert "for another prompts" in refused(*command, "--prompts", tmp_path / "others.txt")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert "for another number of threads" in refused(*command)
    monkeypatch.undo()
    result = run(*command)
    assert "going on with the 3 pieces of work" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"new", "others.txt"}


FULL = r"%s cannot be written: the disk has \S+ [KMG]iB left of the \S+ [KMG]iB that it takes; make room there and run"


def test_a_full_disk_is_one_message_and_leaves_nothing_half_written(
    refused: Callable[..., str], model: Path, prompts: Path, artifact: Path
) -> None:
    """As the system tells of it: no file may be larger than 4 KiB."""
    before = recipe_of(artifact)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, hard))
    try:
        said = refused("quantize", model, "--prompts", prompts, *FAST, "-o", artifact, "--overwrite")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert re.search(FULL % r"\.artifact\.work/step-0000\.piece", said)
    assert recipe_of(artifact) == before
    assert [path.name for path in artifact.parent.iterdir()] == ["artifact"]


@pytest.mark.parametrize("error", [SafetensorError("I/O error: No space left (os error 28)"), OSError(28, "full")])
def test_a_disk_that_fills_up_while_saving_leaves_the_old_artifact(
    run: Callable[..., Result],
    refused: Callable[..., str],
    model: Path,
    prompts: Path,
    artifact: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    command = ("quantize", model, "--prompts", prompts, *FAST, "-o", artifact, "--overwrite", "--relax", "none")
    before = recipe_of(artifact)

    def full(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("bitbrush.artifact.stored.save_file", full)
        assert re.search(FULL % r"/artifact", refused(*command))
    assert recipe_of(artifact) == before
    assert {path.name for path in artifact.parent.iterdir()} == {"artifact", ".artifact.work"}
    assert "going on with the 3 pieces of work" in run(*command).stderr
    assert recipe_of(artifact)["relax"] == "none"


@pytest.mark.parametrize("place", ["new", "deep/er/new"])
def test_a_read_only_place_is_known_before_anything_is_loaded(
    refused: Callable[..., str], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def refuse(**_: object) -> None:  # root may write anywhere
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("bitbrush.sources.models.load_source", None)
    said = refused("quantize", "emoji-sd", "-o", tmp_path / place, *FAST)
    assert f"{place} cannot be written: {tmp_path} is read-only, or not yours to write to; choose another" in said


def test_a_file_in_the_way_is_told_of(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine", encoding="utf-8")
    said = refused("quantize", "emoji-sd", "-o", tmp_path / "notes" / "new")
    assert "cannot be made" in said
    assert "notes is a file; choose another output" in said


def test_phases_are_numbered(
    run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitbrush.cli.progress.SECONDS_BETWEEN_LINES", -1.0)
    options = ("--prompts", prompts, "--method", "best", *FAST[2:], *MIDDLE)
    result = run("quantize", model, "-o", tmp_path / "new", *options)
    told = [line.partition(":")[0] for line in result.stderr.splitlines() if " of 5, " in line]
    assert list(dict.fromkeys(told)) == [
        "1 of 5, undisturbed steps",
        "2 of 5, disturbed steps",
        "3 of 5, weight ranges",
        "4 of 5, probing layers",
        "5 of 5, calibrating",
    ]
    assert all("left in all" in line for line in result.stderr.splitlines() if " of 5, " in line)


def test_a_prompt_too_long_is_told_and_cut(run: Callable[..., Result], model: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red cat\n" + "dog " * 200, encoding="utf-8")
    result = run("quantize", model, "-o", tmp_path / "new", "--prompts", tmp_path / "p.txt", *FAST)
    assert result.exit_code == 0
    assert "has 202 tokens, the text encoder takes 32; dropped:" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--weights", 1), "weights is 1; it must be a whole number from 2 to 8"),
        (("--weights", 9), "weights is 9; it must be a whole number from 2 to 8"),
        (("--activations", 3), "activations is 3; it must be a whole number from 4 to 16"),
        (("--activations", 17), "activations is 17; it must be a whole number from 4 to 16"),
        (("--relax", "1:0.8@10"), "relaxed interval is 1:0.8; fractions of the steps with 0 <= start < end <= 1"),
        (("--relax", "0.8:1.2@10"), "relaxed interval is 0.8:1.2"),
        (("--relax", "0.8:1@17"), "relaxed bits is 17; supported are 2 to 16"),
        (("--relax", "0.8:1@8"), "8 bits are no more than the 8 bits"),
        (("--relax", "late"), "relax is 'late'; expected START:END@BITS"),
        (
            ("--method", "magic"),
            "method is 'magic'; known are pcr, best, one-shot, ptq4dm, qdiffusion, smoothquant, dynamic, rtn, paper",
        ),
        (("--rounding", "up"), "rounding is 'up'; choose from nearest, learned"),
        (("--steps", 0), "steps"),
        (("--num-prompts", 9), "num_prompts is 9, but only 3 calibration prompts are given"),
        (("--scheduler", "dice"), "scheduler is 'dice'; known are pndm"),
        (("--exclude", "nothing.like.it"), "exclude pattern 'nothing.like.it' matches none of"),
    ],
)
def test_bad_options_are_refused(
    refused: Callable[..., str], model: Path, prompts: Path, tmp_path: Path, options: tuple, message: str
) -> None:
    assert message in refused("quantize", model, "-o", tmp_path / "new", "--prompts", prompts, *FAST, *options)
    assert not list(tmp_path.iterdir())


def test_an_unknown_recipe_key_is_refused(
    refused: Callable[..., str], model: Path, prompts: Path, tmp_path: Path
) -> None:
    (tmp_path / "r.toml").write_text("weihgts = 4\n", encoding="utf-8")
    said = refused("quantize", model, "-o", tmp_path / "new", "--prompts", prompts, "--recipe", tmp_path / "r.toml")
    assert "unknown recipe key 'weihgts' = 4; known are method, weights" in said
    said = refused("quantize", model, "-o", tmp_path / "new", "--prompts", prompts, "--recipe", tmp_path / "no.toml")
    assert "no.toml cannot be read" in said


def test_an_unknown_model_is_refused(refused: Callable[..., str], prompts: Path, tmp_path: Path) -> None:
    said = refused("quantize", "no-such-model", "-o", tmp_path / "new", "--prompts", prompts)
    assert "model 'no-such-model' is neither bundled (emoji-sd, emoji-sdxl, emoji-clip), nor a directory" in said
    (tmp_path / "empty").mkdir()
    said = refused("quantize", tmp_path / "empty", "-o", tmp_path / "new", "--prompts", prompts)
    assert "is no diffusers pipeline: it has no model_index.json" in said
    assert "emoji-sd and emoji-sdxl are" in refused(
        "quantize", "emoji-clip", "-o", tmp_path / "new", "--prompts", prompts
    )


def test_prompts_that_cannot_be_had_are_refused(refused: Callable[..., str], model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n\n", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin.txt").write_bytes("ein gr\xfcner Apfel".encode("latin-1"))
    new = tmp_path / "new"
    for name, message in {
        "empty.txt": "the file is empty; write one prompt a line",
        "latin.txt": "the file is not UTF-8 text",
        "none.txt": "there is no such file",
        "folder": "it is a folder",
    }.items():
        assert message in refused("quantize", model, "-o", new, "--prompts", tmp_path / name)
    assert "has no prompts of its own; name a file of prompts" in refused("quantize", model, "-o", new)
    assert not new.exists()


def test_what_is_not_ours_is_left_alone(
    refused: Callable[..., str], model: Path, prompts: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all I have", encoding="utf-8")
    said = refused("quantize", model, "-o", tmp_path / "mine", "--prompts", prompts)
    assert "exists and is no bitbrush artifact to replace; choose another directory" in said
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_nan_weights_are_refused(refused: Callable[..., str], model: Path, prompts: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(model, tmp_path / "broken"))
    tensors = load_file(broken / WEIGHTS)
    tensors["conv_in.weight"][0, 0, 0, 0] = torch.nan
    save_file(tensors, broken / WEIGHTS, metadata={"format": "pt"})
    said = refused("quantize", broken, "-o", tmp_path / "new", "--prompts", prompts, *FAST)
    assert "NaN or infinity" in said
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("method", ["pcr", "best"])
def test_activations_that_overflow_are_refused(
    refused: Callable[..., str], model: Path, prompts: Path, tmp_path: Path, method: str
) -> None:
    broken = Path(shutil.copytree(model, tmp_path / "broken"))
    tensors = load_file(broken / WEIGHTS)
    for tensor in (tensor for name, tensor in tensors.items() if name.endswith("weight")):
        tensor *= 2.0**23 / tensor.abs().max()  # as large as a checkpoint may hold, in every layer
    save_file(tensors, broken / WEIGHTS, metadata={"format": "pt"})
    options = (*FAST, "--method", method)
    said = refused("quantize", broken, "-o", tmp_path / "new", "--prompts", prompts, *options)
    assert "layer " in said
    assert "at step 0 (timestep " in said
    assert "during calibration" in said
    assert not (tmp_path / "new").exists()
