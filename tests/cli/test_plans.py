"""bitbrush plans: cells measured once and kept, ratios to recalibrating, refusals that name what fits."""

import importlib
import json
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from bitbrush.bench.experiments.cell_store import FailedCell
from bitbrush.bench.experiments.plans import measure as measuring
from bitbrush.bench.experiments.plans.cells import read_cell, write_cell
from bitbrush.bench.experiments.plans.figures import (
    CellFigures,
    Ratios,
    cell_figures,
    headline,
)
from bitbrush.bench.experiments.plans.plan_list import Plan
from bitbrush.bench.metrics.interval import Interval
from bitbrush.timeline.plan import SamplingPlan
from tests.artifact.pipelines import CASES, pipeline
from tests.bench.results_files import read_results
from tests.cli.conftest import FAST

PLANS = ("--steps", "2,3", "--schedulers", "pndm,ddim")


@pytest.fixture
def measure(run: Callable[..., Result], model: Path, prompts: Path) -> Callable[..., dict[str, Any]]:
    """Runs it on an artifact with further options; gives the results."""

    def invoke(artifact: Path, output: Path, *options: object) -> dict[str, Any]:
        given = ("--prompts", prompts, "--calibration-prompts", prompts, "--runtime", "reference")
        result = run("plans", model, artifact, "-o", output, *given, *options)
        assert result.exit_code == 0, result.output
        figures = takewhile(str.strip, result.stdout.splitlines())
        assert max(len(line.rstrip()) for line in figures) <= 80
        return read_results(output)

    return invoke


def cells(results: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    return {(one["scheduler"], one["steps"]): one for one in results["cells"]}


def test_every_plan_against_full_precision_and_recalibrating(
    measure: Callable[..., dict[str, Any]], artifact: Path, tmp_path: Path
) -> None:
    found = cells(measure(artifact, tmp_path / "g", *PLANS))
    assert list(found) == [("pndm", 2), ("pndm", 3), ("ddim", 2), ("ddim", 3)]
    assert [key for key, one in found.items() if one["is_calibrated"]] == [("pndm", 2)]  # nothing to find anew there
    assert [key for key, one in found.items() if one["ratios"] is None] == [("pndm", 2)]
    for one in found.values():
        assert one["artifact"]["latent_mse"]["mean"]["n"] == 3
        assert one["artifact"]["latent_mse"]["median"]["mean"] > 0
        if one["ratios"]:
            for statistic in ("mean", "median"):
                ratio = one["ratios"][f"of_{statistic}s"]
                own, again = (one[name]["latent_mse"][statistic]["mean"] for name in ("artifact", "recalibrated"))
                assert ratio["mean"] == pytest.approx(own / again)
                assert ratio["low"] <= ratio["mean"] <= ratio["high"]
    page = (tmp_path / "g" / "report.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 2 * 2 + 3 * 2 * 3
    assert "the calibrated plan" in page


def test_recalibrated_is_what_recalibrate_makes(
    run: Callable[..., Result], measure: Callable[..., dict[str, Any]], artifact: Path, prompts: Path, tmp_path: Path
) -> None:
    plan = ("--steps", "3", "--schedulers", "ddim")
    (foreign,) = measure(artifact, tmp_path / "g", *plan)["cells"]
    again = run(
        "recalibrate", artifact, "-o", tmp_path / "b", "--steps", 3, "--scheduler", "ddim", "--prompts", prompts
    )
    assert again.exit_code == 0, again.output
    (own,) = measure(tmp_path / "b", tmp_path / "h", *plan)["cells"]
    assert own["is_calibrated"]
    assert own["artifact"] == foreign["recalibrated"]
    assert own["artifact"] != foreign["artifact"]


def test_goes_on_where_it_was_ended(
    measure: Callable[..., dict[str, Any]], artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "g"
    first = measure(artifact, folder, *PLANS, "--no-recalibration")
    assert all(one["recalibrated"] is None for one in first["cells"])
    (kept, *lost) = sorted((folder / "cells").iterdir())
    for path in lost:
        path.unlink()
    before = kept.stat().st_mtime_ns
    again = measure(artifact, folder, *PLANS, "--no-recalibration")
    assert again["cells"] == first["cells"]
    assert kept.stat().st_mtime_ns == before

    def nothing(*_: object, **__: object) -> None:
        raise AssertionError("generated again")

    monkeypatch.setattr(measuring, "generate_each", nothing)
    assert measure(artifact, folder, *PLANS, "--no-recalibration")["cells"] == first["cells"]


def test_as_an_option_of_bench(
    run: Callable[..., Result], refused: Callable[..., str], model: Path, artifact: Path, prompts: Path, tmp_path: Path
) -> None:
    """The other axis stays at the artifact's own, and options that `plans` has not are refused."""
    given = ("bench", model, artifact, "--prompts", prompts, "--runtime", "reference", "-o", tmp_path / "g")
    message = refused(*given, "--plans", "steps,scheduler")
    assert "with --calibration-prompts (or give --no-recalibration)" in message
    assert "'guidance' is none of its axes, which are steps,scheduler" in refused(*given, "--plans", "guidance")
    assert "--clip does not apply to --plans steps" in refused(*given, "--plans", "steps", "--clip", "emoji-clip")
    assert "--steps does not apply to --plans steps" in refused(*given, "--plans", "steps", "--steps", 3)


def test_bench_of_a_bundled_model_tabulates(monkeypatch: pytest.MonkeyPatch, artifact: Path, tmp_path: Path) -> None:
    command = importlib.import_module("bitbrush.cli.plans")  # of the room, the name is the command
    called: list[tuple[object, ...]] = []
    monkeypatch.setattr(command, "plans", lambda *given, **options: called.append((given, options)))
    command.plans_of_bench("steps", "emoji-sd", [str(artifact)], tmp_path, {"num_images": 4, "plans": "steps"})
    assert called == [(("emoji-sd", artifact, tmp_path, None, "PNDMScheduler"), {"num_prompts": 4})]


def test_a_damaged_cell_is_named(
    measure: Callable[..., dict[str, Any]],
    refused: Callable[..., str],
    model: Path,
    artifact: Path,
    prompts: Path,
    tmp_path: Path,
) -> None:
    plan = ("--steps", "2", "--schedulers", "ddim", "--no-recalibration")
    measure(artifact, tmp_path / "g", *plan)
    (path,) = (tmp_path / "g" / "cells").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    given = ("--prompts", prompts, "--runtime", "reference", *plan)
    assert "is damaged" in refused("plans", model, artifact, "-o", tmp_path / "g", *given)


def test_a_plan_whose_latents_break_is_kept_as_such(tmp_path: Path) -> None:
    planned = Plan(SamplingPlan(1, 7.5, "ddim"), "DDIMScheduler", 1)
    failed = FailedCell("the latents of prompt 'a cat' hold NaN")
    write_cell(failed, tmp_path / "cell")
    assert read_cell(planned, tmp_path / "cell") == failed
    figures = cell_figures(planned, failed, calibrated=False)
    assert figures.problem == failed.problem
    assert headline([figures]) == "No plan could be measured"


def measured_cell(ratio: Interval) -> CellFigures:
    planned = Plan(SamplingPlan(10, 7.5, "ddim"), "DDIMScheduler", 10)
    return CellFigures(planned, is_calibrated=False, ratios=Ratios(ratio, ratio))


KEPT, LOST, OPEN = Interval(1.1, 1.0, 1.25, 16), Interval(2.0, 1.5, 2.6, 16), Interval(1.2, 0.9, 1.6, 16)


WITHIN = "other plans keep the latent error within 1.3 times that of recalibrating"
FEW = Interval(9.0, 8.0, 9.5, 5)
"""Of five images, whose median nothing bounds."""


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ([KEPT, KEPT], f"2 of 2 {WITHIN}"),
        ([KEPT, LOST], f"1 of 2 {WITHIN}; 1 do not (up to 2.00 times)"),
        ([KEPT, OPEN], f"1 of 2 {WITHIN}; 16 images do not tell of 1"),
        ([OPEN, OPEN], f"16 images do not tell which of 2 {WITHIN}"),
        ([FEW], f"5 images do not tell which of 1 {WITHIN}"),
    ],
)
def test_plans_are_kept_or_lost_where_the_interval_tells(ratios: list[Interval], said: str) -> None:
    assert headline([measured_cell(ratio) for ratio in ratios]) == said


def test_schedulers_that_do_not_fit(
    refused: Callable[..., str], model: Path, artifact: Path, prompts: Path, tmp_path: Path
) -> None:
    given = ("-o", tmp_path / "g", "--prompts", prompts, "--calibration-prompts", prompts, "--runtime", "reference")
    message = refused("plans", model, artifact, *given, "--schedulers", "flow_euler")
    assert "is no flow-matching model; those that fit are pndm, ddim, ddpm, euler" in message
    assert "steps is 'ten'; expected whole numbers" in refused("plans", model, artifact, *given, "--steps", "ten")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    other = ("-o", tmp_path / "other", "--prompts", prompts)
    assert "holds thesis.tex, which no comparison of plans wrote" in refused("plans", model, artifact, *other)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("lcm", "pndm", "which LatentConsistencyModelPipeline cannot run: .*; those that fit are lcm$"),
        ("sd3", "pndm", "is a flow-matching model; those that fit are flow_euler, flow_heun, flow_lcm$"),
        ("flux-dev", "flow_heun", "which FluxPipeline cannot run: .*; those that fit are flow_euler, flow_lcm$"),
    ],
)
def test_what_a_family_can_run_is_found_out(name: str, wrong: str, message: str) -> None:
    from bitbrush.bench.experiments.plans.plan_list import list_plans
    from bitbrush.timeline.trajectory import prompt_batches

    case = CASES[name]
    pipe = pipeline(case)
    arguments = tuple(case.keys.get("pipeline_arguments", {}).items())
    base = SamplingPlan(2, case.keys["guidance_scale"], None, arguments)
    (batch,) = prompt_batches(("a cat",), 0, 1, inputs=case.inputs)
    with pytest.raises(ValueError, match=message):
        list_plans(pipe, base, (wrong,), (), batch)
    few = list_plans(pipe, base, (), (), batch)
    assert {one.plan.steps for one in few} == {1, 2, 4}
    if name == "sd3":
        assert {one.plan.scheduler for one in few} == {"flow_euler", "flow_heun"}


def test_pictures_to_start_from(
    run: Callable[..., Result], refused: Callable[..., str], prompts: Path, tmp_path: Path
) -> None:
    from tests.artifact.pipelines import picture

    (tmp_path / "images").mkdir()
    for seed in (0, 1):
        picture(seed).save(tmp_path / "images" / f"{seed}.png")
    pipeline(CASES["sd-img2img"]).save_pretrained(tmp_path / "model")
    pictures, strength = ("--images", tmp_path / "images"), ("--pipeline-argument", "strength=0.5")
    made = ("quantize", tmp_path / "model", "-o", tmp_path / "a", "--prompts", prompts, *FAST, *strength, *pictures)
    assert run(*made, "--steps", 4).exit_code == 0
    given = (tmp_path / "model", tmp_path / "a", "--prompts", prompts, "--runtime", "reference")
    plans = ("--steps", "4", "--schedulers", "ddim", "--calibration-prompts", prompts)
    assert "give image" in refused("plans", *given, *plans, "-o", tmp_path / "g")
    assert run("plans", *given, *plans, "-o", tmp_path / "g", *pictures).exit_code == 0
    (cell,) = json.loads((tmp_path / "g" / "results.json").read_text(encoding="utf-8"))["cells"]
    assert np.isfinite(cell["ratios"]["of_means"]["mean"])
    compared = run("compare", *given, "--json", *pictures)
    assert compared.exit_code == 0, compared.output
    assert "give image" in refused("compare", *given)
