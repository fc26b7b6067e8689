"""bitbrush sensitivity: curves over the steps, a recommendation that follows from them, refusals."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray

from bitbrush.bench.experiments.sensitivity.analysis import StepSensitivity, recommend, step_sensitivities
from bitbrush.bench.experiments.sensitivity.disturbance import (
    DisturbedImages,
    QuantizedActivations,
    RelativeNoise,
    disturbed_images,
)
from bitbrush.bench.metrics.interval import Interval
from bitbrush.bench.networks.clip import load_clip
from bitbrush.session.journal import NO_JOURNAL, Journal
from bitbrush.session.progress import Advance, Progress, silent
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import DenoiserCall, prompt_batches
from tests.bench.results_files import read_results
from tests.recorded_progress import RecordedProgress

SMALL = ("--clip", "emoji-clip", "--steps", 4, "--num-prompts", 2)


def test_writes_curves_and_a_page(run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path) -> None:
    result = run("sensitivity", model, "-o", tmp_path / "s", "--prompts", prompts, "--activations", 4, *SMALL)
    assert result.exit_code == 0, result.output
    results = read_results(tmp_path / "s")
    assert [one["step"] for one in results["steps"]] == [0, 1, 2, 3, 4]
    assert all(one["image_mse"]["n"] == 2 for one in results["steps"])
    assert all(one["image_mse"]["mean"] > 0 for one in results["steps"])
    assert results["recommendation"]["reason"] in " ".join(result.stdout.split())
    page = (tmp_path / "s" / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 3
    assert "activations of one step in 4 bits" in page
    assert "this scheduler calls it more than once at a timestep" in page  # PNDM after its first step


def test_every_second_step_and_noise(run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path) -> None:
    options = ("--noise", 0.1, "--every", 2, *SMALL)
    assert run("sensitivity", model, "-o", tmp_path / "s", "--prompts", prompts, *options).exit_code == 0
    results = read_results(tmp_path / "s")
    assert [one["step"] for one in results["steps"]] == [0, 2, 4]
    assert "more than once" not in (tmp_path / "s" / "report.html").read_text(encoding="utf-8")


def test_bad_input_is_refused(refused: Callable[..., str], model: Path, prompts: Path, tmp_path: Path) -> None:
    def message(*arguments: object) -> str:
        return refused("sensitivity", model, "-o", tmp_path / "s", "--prompts", prompts, *SMALL, *arguments)

    assert "activations is 3" in message("--activations", 3)
    assert "noise is 2" in message("--noise", 2)
    assert "scheduler is 'none'" in message("--scheduler", "none")
    assert not (tmp_path / "s").exists()
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "mine.txt").write_text("mine")
    assert "holds mine.txt" in message()


class Undisturbing:
    description, calls = "nothing", 0

    def __call__(self, denoiser: torch.nn.Module, call: DenoiserCall, right: Any) -> Any:
        return right


def test_a_step_that_is_not_disturbed_changes_nothing_and_calls_are_saved(tiny_pipe: StableDiffusionPipeline) -> None:
    """The clean outputs are taken up to the disturbed step, and the pipeline goes on as if nothing had been."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    tiny_pipe.unet.register_forward_pre_hook(count)
    batches = prompt_batches(("a cat", "a dog", "an owl"), 0, 2)
    clip = load_clip("emoji-clip", torch.device("cpu"))

    found = step_sensitivities(tiny_pipe, batches, SamplingPlan(steps=4), Undisturbing(), clip)
    assert [one.image_mse.mean for one in found] == [0] * 5
    assert [one.match.mean for one in found] == [0] * 5
    assert calls == 2 * (5 + 4 + 3 + 2 + 1 + 0)


def test_noise_is_of_the_size_it_says(tiny_pipe: StableDiffusionPipeline) -> None:
    right = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * 3,)
    disturbed = RelativeNoise(0.1, 0)(tiny_pipe.unet, None, right)  # type: ignore[arg-type]
    assert float((disturbed[0] - right[0]).std() / right[0].std()) == pytest.approx(0.1, rel=0.1)


def curve(psnr: NDArray[np.float64]) -> list[StepSensitivity]:
    """Of the PSNR (steps, pictures)."""
    none = Interval(0, 0, 0, 8)
    return [StepSensitivity(step, 0.0, tuple(one.tolist()), none, none, none, ()) for step, one in enumerate(psnr)]


def test_recommends_the_end_that_stands_out() -> None:
    falling = np.linspace(60, 50, 20)[:, None] + np.random.default_rng(0).normal(0, 3, (20, 16))
    assert recommend(curve(falling)).relax == "0.8:1"
    assert recommend(curve(falling[::-1])).relax == "0:0.2"
    unsure = recommend(curve(50 + np.random.default_rng(1).normal(0, 3, (20, 16))))
    assert unsure.relax is None
    assert "neither end stands out" in unsure.reason


@pytest.mark.parametrize("prompts", [2, 3, 5])
def test_few_prompts_recommend_nothing(prompts: int) -> None:
    falling = np.repeat(np.linspace(60, 20, 20)[:, None], prompts, axis=1)
    found = recommend(curve(falling))
    assert found.relax is None
    assert found.reason == f"{prompts} prompts are too few to tell; 6 or more bound a median"


def test_a_picture_that_turns_into_another_does_not_decide() -> None:
    falling = np.repeat(np.linspace(60, 50, 20)[:, None], 16, axis=1)
    falling[2, 5] = 20
    assert recommend(curve(falling)).relax == "0.8:1"


def test_says_how_much_and_how_many() -> None:
    psnr = np.full((10, 8), 60.0)
    psnr[-2:] = 50.0
    psnr[0, :3] = 22
    told = recommend(curve(psnr)).reason
    assert "costs the usual image 10.0 dB" in told
    assert "images below 30 dB: 3 of 8 by the first fifth, 0 of 8 by the last" in told


class Killed(BaseException):
    pass


@pytest.fixture
def runs(tiny_pipe: StableDiffusionPipeline) -> Callable[..., DisturbedImages]:
    """The disturbed runs of two batches, with a journal and progress."""
    batches = prompt_batches(("a cat", "a dog", "an owl"), 0, 2)
    disturb = QuantizedActivations(tiny_pipe, 4)

    def run(journal: Journal = NO_JOURNAL, progress: Progress = silent) -> DisturbedImages:
        plan = SamplingPlan(steps=2)
        return disturbed_images(tiny_pipe, batches, plan, disturb, every=2, progress=progress, journal=journal)

    return run


def test_ended_anywhere_it_comes_to_the_same(runs: Callable[..., DisturbedImages], tmp_path: Path) -> None:
    """Ended after each report in turn; and what is there is not made again."""
    whole, journal, ends, reports = runs(), Journal(tmp_path), 0, 0
    made = None

    @contextmanager
    def progress(_: str, total: int) -> Iterator[Advance]:
        def advance() -> None:
            nonlocal left, reports
            left, reports = left - 1, reports + 1
            if left == 0:
                raise Killed

        yield advance

    while made is None:
        before, left = len(journal.pieces()), 9
        try:
            made = runs(journal, progress)
        except Killed:
            ends += 1
            assert len(journal.pieces()) > before
    assert ends > 2
    assert made.timesteps == whole.timesteps
    assert np.array_equal(made.undisturbed, whole.undisturbed)
    assert made.disturbed.keys() == whole.disturbed.keys() == {0, 2}
    assert all(np.array_equal(images, whole.disturbed[step]) for step, images in made.disturbed.items())
    reports = 0
    left = -1
    runs(journal, progress)
    assert reports == 0


def test_the_plan_is_what_is_reported(runs: Callable[..., DisturbedImages]) -> None:
    progress = RecordedProgress()
    runs(progress=progress)
    progress.require_as_planned()


def test_interrupted_it_goes_on(
    run: Callable[..., Result],
    refused: Callable[..., str],
    model: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ("sensitivity", model, "-o", tmp_path / "s", "--prompts", prompts, *SMALL[:2], "--steps", 2)
    write, left = Journal.write, 2

    def interrupted(journal: Journal, piece: str, tensors: dict[str, Any]) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        write(journal, piece, tensors)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "write", interrupted)
        result = run(*command, "--num-prompts", 2)
    assert result.exit_code == 130
    assert "run the same command again to go on from what is finished" in result.stderr
    assert not (tmp_path / "s").exists()
    monkeypatch.setattr("bitbrush.sources.models.load_full_precision", None)  # known before it is loaded
    said = refused(*command, "--num-prompts", 2, "--guidance-scale", 2)
    assert "holds unfinished work for another plan (guidance_scale is 7.5 there and 2.0 here)" in said
    assert "for another prompts" in refused(*command, "--num-prompts", 3)
    monkeypatch.undo()
    result = run(*command, "--num-prompts", 2)
    assert "going on with the 2 runs of the pipeline" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    whole = tmp_path / "whole"
    run("sensitivity", model, "-o", whole, "--prompts", prompts, *SMALL[:2], "--steps", 2, "--num-prompts", 2)
    resumed, undisturbed = (json.loads((one / "results.json").read_text()) for one in (tmp_path / "s", whole))
    assert resumed["steps"] == undisturbed["steps"]
