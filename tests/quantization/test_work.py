"""Work that is ended at any moment goes on, and comes to the same."""

import copy
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

import bitbrush
from bitbrush import Quantization
from bitbrush.artifact.store import WEIGHTS
from bitbrush.methods.recipe import Rounding
from bitbrush.methods.stages.round_weights import PROCEDURES
from bitbrush.rounding.learned import Procedure
from bitbrush.session.journal import Journal
from bitbrush.session.outputs import work_folder
from bitbrush.session.progress import Advance
from tests.artifact.pipelines import CASES, PROMPTS, picture, pipeline

RECIPE = bitbrush.METHODS["pcr"].recipe({"steps": 4, "num_prompts": 2, "batch_size": 1, "relax": "0.5:1@10"})


class Killed(BaseException):
    pass


def assert_same(a: Quantization, b: Quantization) -> None:
    assert a.outcome.planned == b.outcome.planned
    assert [layer.name for layer in a.outcome.layers] == [layer.name for layer in b.outcome.layers]
    for ours, theirs in zip(a.outcome.layers, b.outcome.layers, strict=True):
        assert ours.activations == theirs.activations, ours.name
        assert torch.equal(ours.weight.w_q, theirs.weight.w_q), ours.name
        assert torch.equal(ours.weight.qparams.scale, theirs.weight.qparams.scale), ours.name
        assert torch.equal(ours.weight.qparams.zero_point, theirs.weight.qparams.zero_point), ours.name
        assert (ours.bias is None) == (theirs.bias is None)
        assert ours.bias is None or torch.equal(ours.bias, theirs.bias), ours.name


@pytest.fixture(scope="module")
def whole(_one_tiny_pipe: StableDiffusionPipeline) -> Quantization:
    return bitbrush.quantize(copy.deepcopy(_one_tiny_pipe), RECIPE, PROMPTS)


def pieces_of(folder: Path) -> tuple[str, ...]:
    return Journal(folder).pieces()


def test_ended_again_and_again_it_comes_to_the_same(
    tiny_pipe: StableDiffusionPipeline, whole: Quantization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before or after a piece is on disk, in each run a random number of pieces later."""
    chance = random.Random(0)
    write, left, ends = Journal.write, 0, 0

    def write_or_die(journal: Journal, piece: str, tensors: dict[str, Tensor]) -> None:
        nonlocal left
        left -= 1
        if left < 0 and chance.random() < 0.5:
            raise Killed
        write(journal, piece, tensors)
        if left < 0:
            raise Killed

    monkeypatch.setattr(Journal, "write", write_or_die)
    made = None
    while made is None:
        before, left = len(pieces_of(tmp_path / "work")), chance.randrange(8)
        try:
            made = bitbrush.quantize(tiny_pipe, RECIPE, PROMPTS, work=tmp_path / "work")
        except Killed:
            ends += 1
            assert len(pieces_of(tmp_path / "work")) >= before
    assert ends > 4
    assert_same(made, whole)
    # Every block and every denoiser call of a batch (PNDM makes one more than steps) was a piece.
    kinds = [piece.partition("-")[0] for piece in pieces_of(tmp_path / "work")]
    assert kinds.count("step") == 5
    assert kinds.count("block") > 20


def test_finished_work_is_not_done_again(
    tiny_pipe: StableDiffusionPipeline, whole: Quantization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_same(bitbrush.quantize(tiny_pipe, RECIPE, PROMPTS, work=tmp_path / "work"), whole)

    def never(*_: object, **__: object) -> Any:
        raise AssertionError("done before")

    monkeypatch.setitem(PROCEDURES, Rounding.LEARNED, Procedure(never, never, least_layers=2))
    monkeypatch.setattr("bitbrush.network.inputs.InputObserver.watching", never)
    again = bitbrush.quantize(tiny_pipe, RECIPE, PROMPTS, work=tmp_path / "work")
    assert_same(again, whole)
    assert again.costs["progressive_calibration"].denoiser_calls_per_batch == 5


@pytest.mark.parametrize("method", ["best", "pcr"])
def test_ended_at_every_piece_it_comes_to_the_same(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Ended by its progress as soon as there is a piece more, sensitivities included."""
    keys = {"steps": 3, "num_prompts": 2, "batch_size": 2, "weights": 4, "exclude": ["up_blocks.*"]}
    recipe = bitbrush.METHODS[method].recipe(keys)
    whole = bitbrush.quantize(tiny_pipe, recipe, PROMPTS)
    work, made, before, ends = tmp_path / "work", None, 0, 0

    @contextmanager
    def progress(phase: str, total: int) -> Iterator[Advance]:
        def advance() -> None:
            if len(pieces_of(work)) > before:
                raise Killed

        yield advance

    while made is None:
        before = len(pieces_of(work))
        try:
            made = bitbrush.quantize(tiny_pipe, recipe, PROMPTS, work=work, progress=progress)
        except Killed:
            ends += 1
    assert ends > 15
    assert_same(made, whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_by_the_system(tiny_pipe: StableDiffusionPipeline, tmp_path: Path, seed: int) -> None:
    """Kill -9 as soon as a random number of pieces is there; the command run again makes the same artifact."""
    tiny_pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    options = ["--prompts", "prompts.txt", "--steps", "4", "--num-prompts", "2"]

    command = [sys.executable, "-m", "bitbrush", "quantize", "model", "-o", "killed", *options]
    wanted = random.Random(seed).randrange(1, 30)
    work = work_folder(tmp_path / "killed")
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and len(pieces_of(work)) < wanted:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()

    resumed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "pieces of work that" in resumed.stderr
    assert not work.exists()
    subprocess.run([*command, "-o", "whole"], cwd=tmp_path, capture_output=True, check=True)
    ours, theirs = (tmp_path / name / "unet" / WEIGHTS for name in ("killed", "whole"))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize(
    ("keys", "prompts", "differs"),
    [
        ({"weights": 3}, PROMPTS, r"recipe \(weights is 4 there and 3 here\)"),
        ({}, (PROMPTS[0], "another"), "prompts"),
        ({"seed": 1}, PROMPTS, r"recipe \(seed is 0 there and 1 here\) and another prompts"),
    ],
)
def test_other_work_is_left_alone(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, keys: dict[str, Any], prompts: tuple[str, ...], differs: str
) -> None:
    brief = RECIPE.updated({"rounding": "nearest", "steps": 1})
    bitbrush.quantize(tiny_pipe, brief, PROMPTS, work=tmp_path / "work")
    before = pieces_of(tmp_path / "work")
    with pytest.raises(
        ValueError, match=f"holds unfinished work for another {differs}; go on with the command that began it"
    ):
        bitbrush.quantize(tiny_pipe, brief.updated(keys), prompts, work=tmp_path / "work")
    assert pieces_of(tmp_path / "work") == before


def test_work_of_another_model_or_machine_is_left_alone(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brief = RECIPE.updated({"rounding": "nearest", "steps": 1})
    bitbrush.quantize(tiny_pipe, brief, PROMPTS, work=tmp_path / "work")
    with monkeypatch.context() as patched:
        patched.setattr(torch, "get_num_threads", lambda: 7)
        with pytest.raises(ValueError, match="for another number of threads"):
            bitbrush.quantize(tiny_pipe, brief, PROMPTS, work=tmp_path / "work")
    with torch.no_grad():
        tiny_pipe.vae.quant_conv.weight += 1
    with pytest.raises(ValueError, match="for another model; go on"):
        bitbrush.quantize(tiny_pipe, brief, PROMPTS, work=tmp_path / "work")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"mine holds no fingerprint\.json: it is half removed, or no folder of work"):
        bitbrush.quantize(tiny_pipe, brief, PROMPTS, work=tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_folder_without_a_finished_piece_is_anyones(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise Killed

    brief = RECIPE.updated({"rounding": "nearest", "steps": 1})
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "write", killed)
        with pytest.raises(Killed):
            bitbrush.quantize(tiny_pipe, brief, PROMPTS, work=tmp_path / "work")
    bitbrush.quantize(tiny_pipe, brief.updated({"weights": 3}), PROMPTS, work=tmp_path / "work")


def test_pictures_belong_to_the_work(tmp_path: Path) -> None:
    case = CASES["sd-img2img"]
    recipe = bitbrush.METHODS["pcr"].recipe({**case.keys, "num_prompts": 1, "rounding": "nearest"})
    pipe = pipeline(case)
    bitbrush.quantize(pipe, recipe, PROMPTS, inputs={"image": [picture(0)]}, work=tmp_path / "work")
    with pytest.raises(ValueError, match="for another prompts"):
        bitbrush.quantize(pipe, recipe, PROMPTS, inputs={"image": [picture(1)]}, work=tmp_path / "work")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_ten_times_the_bundled_model_comes_to_the_same(tmp_path: Path) -> None:
    """Kill -9 at ten random moments, two of them while sensitivities are measured: every file is the same."""
    options = ["--steps", "4", "--num-prompts", "2", "--batch-size", "2"]
    command = [sys.executable, "-m", "bitbrush", "quantize", "emoji-sd", *options, "-o"]
    subprocess.run([*command, "whole"], cwd=tmp_path, capture_output=True, check=True)
    chance, work = random.Random(0), work_folder(tmp_path / "killed")
    stops = [2, 6]  # of four segments and four probed calls; then come 40 blocks and 5 steps
    for _ in range(8):
        stops.append(stops[-1] + chance.randrange(3, 8))
    seen = []
    for stop in stops:
        process = subprocess.Popen(
            [*command, "killed"], cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        while process.poll() is None and len(pieces_of(work)) < stop:
            time.sleep(0.01)
        time.sleep(chance.random() / 2)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        seen.append(pieces_of(work))
    assert all(piece.startswith("sensitivity-") for pieces in seen[:2] for piece in pieces)
    assert any(piece.startswith("block-") for piece in seen[-1])
    subprocess.run([*command, "killed"], cwd=tmp_path, capture_output=True, check=True)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["killed", "whole"]
    whole, killed = (bitbrush.read_manifest(tmp_path / name) for name in ("whole", "killed"))
    assert {**killed["files"], "README.md": ""} == {**whole["files"], "README.md": ""}
    own = ("cost",)
    assert {key: value for key, value in killed.items() if key not in (*own, "files")} == {
        key: value for key, value in whole.items() if key not in (*own, "files")
    }
