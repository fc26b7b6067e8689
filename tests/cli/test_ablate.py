"""bitbrush ablate: recipes by bits, cells kept and shared, the same artifacts as `bitbrush quantize` makes."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

import bitbrush
from bitbrush.artifact.manifest import read_manifest
from bitbrush.artifact.verification import artifact_digest
from bitbrush.bench.experiments.ablate import measure
from bitbrush.bench.experiments.ablate.cells import Cell, read_cell
from bitbrush.bench.experiments.ablate.folder import Folder
from bitbrush.bench.experiments.ablate.markdown import ablation_markdown
from bitbrush.bench.experiments.ablate.standing import headline
from bitbrush.cli import app
from tests.artifact.pipelines import CASES, picture, pipeline
from tests.bench.results_files import read_results

SMALL = ("--steps", 2, "--num-prompts", 2, "--num-images", 3, "--batch-size", 2, "--clip", "emoji-clip")
FAST = (
    "--recipe",
    "pcr: pcr rounding=nearest relax=0.5:1@+2",
    "--recipe",
    "static: ptq4dm rounding=nearest",
    "--recipe",
    "rtn",
)
WHOLE = (*FAST, "--bits", "W8A8,W4A6")


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Prompts of the calibration's style and of another."""
    folder = tmp_path_factory.mktemp("held out")
    for name, style in (("plain", ""), ("styled", ", oil on canvas")):
        lines = [f"a {colour} horse{style}\n" for colour in ("pink", "white", "black", "brown")]
        (folder / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
    return ["--prompts", folder / "plain.txt", "--unseen-prompts", folder / "styled.txt"]


@pytest.fixture
def invoke(run: Callable[..., Result], model: Path, prompts: Path, held_out: list[object]) -> Callable[..., Result]:
    def of(output: Path, *options: object, sets: Sequence[object] = held_out[:2]) -> Result:
        given = ("--calibration-prompts", prompts, "--runtime", "reference", *sets, *SMALL)
        return run("ablate", model, "-o", output, *given, *options)

    return of


@pytest.fixture
def measured(invoke: Callable[..., Result]) -> Callable[..., dict[str, Any]]:
    """Runs it with further options; gives the results."""

    def of(output: Path, *options: object, **given: Any) -> dict[str, Any]:
        result = invoke(output, *options, **given)
        assert result.exit_code == 0, result.output
        return read_results(output)

    return of


@pytest.fixture(scope="module")
def whole(model: Path, prompts: Path, held_out: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole ablation, not to be changed."""
    folder = tmp_path_factory.mktemp("ablations") / "whole"
    given = ("--calibration-prompts", prompts, "--runtime", "reference", *held_out, *SMALL, *WHOLE)
    result = CliRunner().invoke(app, [str(one) for one in ("ablate", model, "-o", folder, *given)])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def results(whole: Path) -> dict[str, Any]:
    return read_results(whole)


def cells(results: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(one["bits"], one["recipe"]): one for one in results["cells"]}


def test_recipes_by_bits_under_one_protocol(results: dict[str, Any]) -> None:
    found = cells(results)
    assert list(found) == [(bits, name) for bits in ("W8A8", "W4A6") for name in ("pcr", "static", "rtn")]
    assert results["against"] == "pcr"
    for (bits, name), one in found.items():
        assert list(one["figures"]) == ["all prompt sets", "plain", "styled"]
        assert [one["figures"][key]["psnr"]["n"] for key in one["figures"]] == [6, 3, 3]
        assert one["weight_bits"] == int(bits[1])
        assert one["gap"]["low"] <= one["gap"]["mean"] <= one["gap"]["high"]
        assert len(one["figures"]["plain"]["latent_mse_by_step"]) == 3  # PNDM's T + 1
        errors = np.concatenate([one["values"][key]["latent_mse"] for key in ("plain", "styled")])
        other = np.concatenate([found[bits, "pcr"]["values"][key]["latent_mse"] for key in ("plain", "styled")])
        assert one["figures"]["all prompt sets"]["latent_mse"]["mean"] == pytest.approx(errors.mean(), rel=1e-3)
        geometric = one["figures"]["all prompt sets"]["latent_mse_geometric"]["mean"]
        assert geometric == pytest.approx(np.exp(np.log(errors).mean()), rel=1e-3)
        if name == "pcr":
            assert not one["against"]
            continue
        ratio = one["against"]["all prompt sets"]
        assert ratio["latent_mse_ratio"]["mean"] == pytest.approx(errors.mean() / other.mean(), rel=1e-3)
        levels = [one["figures"]["all prompt sets"]["psnr"]["mean"] for one in (found[bits, "pcr"], one)]
        assert ratio["psnr_difference"]["mean"] == pytest.approx(levels[1] - levels[0])
        expected = np.exp(np.log(errors).mean() - np.log(other).mean())
        assert ratio["geometric_ratio"]["mean"] == pytest.approx(expected, rel=1e-3)
    assert found["W4A6", "pcr"]["activation_bits"] > 6  # the relaxed steps'
    assert found["W4A6", "rtn"]["activation_bits"] == 6
    assert (
        found["W8A8", "rtn"]["figures"]["plain"]["psnr"]["mean"]
        > found["W4A6", "rtn"]["figures"]["plain"]["psnr"]["mean"]
    )
    assert (
        results["floor"]["figures"]["plain"]["psnr"]["mean"] < found["W8A8", "rtn"]["figures"]["plain"]["psnr"]["mean"]
    )


def test_the_tables_follow_from_the_results(whole: Path, results: dict[str, Any]) -> None:
    text = (whole / "ablation.md").read_text(encoding="utf-8")
    assert text == ablation_markdown(results)
    heads = [line for line in text.splitlines() if line.startswith("**")]
    assert heads == ["**W8A8**", "**W4A6**", "**W8A8**", "**W4A6**"]
    rows = [line.split(" | ") for line in text.split("**W4A6**")[1].splitlines() if line.startswith("| ")]
    rows = rows[1 : [row[0] for row in rows].index("| another seed") + 1]
    levels = [float(row[1].split()[0]) for row in rows[:-1]]
    assert levels == sorted(levels, reverse=True)
    assert rows[-1][0] == "| another seed"


def test_the_same_from_python(
    whole: Path, results: dict[str, Any], model: Path, prompts: Path, held_out: list[object]
) -> None:
    """On the same folder nothing is left to be computed; other differences follow from what is there."""
    found = bitbrush.ablate(
        str(model),
        whole,
        recipes=["pcr: pcr rounding=nearest relax=0.5:1@+2", "static: ptq4dm rounding=nearest", "rtn"],
        bits=["W8A8", "W4A6"],
        prompts=[str(held_out[1])],
        unseen_prompts=[str(held_out[3])],
        num_images=3,
        calibration_prompts=str(prompts),
        clip="emoji-clip",
        batch_size=2,
        runtime="reference",
        steps=2,
        num_prompts=2,
        tell=lambda line: pytest.fail(f"computed again: {line}"),
    )
    assert {**found, "command": results["command"]} == results


def test_one_page_with_every_recipes_picture_of_the_same_noise(whole: Path, results: dict[str, Any]) -> None:
    page = (whole / "report.html").read_text(encoding="utf-8")
    recipes = len(results["recipes"])
    assert page.count("<img ") == 2 * 2 * 3 * (1 + recipes)  # bit settings, sets, prompts of each
    assert f"<h1>{headline(results)}.</h1>" in page
    assert "Unfinished" not in page
    assert page.count("<svg ") == 1 + 2
    assert len(list((whole / "plots").glob("*.svg"))) == 3
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")


def test_the_recorded_command_holds_no_path_of_the_machine(
    measured: Callable[..., dict[str, Any]], whole: Path, held_out: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["ablate", "emoji-sd", "-o", str(whole), "--recipe", "a: pcr relax=none", "--markdown", "docs/results.md"]
    monkeypatch.setattr(sys, "argv", ["bitbrush", *given])
    command = measured(whole, *WHOLE, sets=held_out)["command"]
    assert command == "bitbrush ablate emoji-sd -o whole --recipe 'a: pcr relax=none' --markdown docs/results.md"


def test_a_section_of_a_longer_file(
    invoke: Callable[..., Result], measured: Callable[..., dict[str, Any]], model: Path, tmp_path: Path
) -> None:
    page = tmp_path / "results.md"
    given = ("--recipes", "rtn", "--bits", "W8A8", "--markdown", page)
    measured(tmp_path / "a", *given)
    alone = page.read_text(encoding="utf-8")
    assert alone == (tmp_path / "a" / "ablation.md").read_text(encoding="utf-8")
    page.write_text("# Ours\n", encoding="utf-8")
    refused = invoke(tmp_path / "a", *given)
    assert refused.exit_code == 2
    marks = f"<!-- bitbrush ablate {model} -->", f"<!-- end of bitbrush ablate {model} -->"
    assert " ".join(marks) in " ".join(refused.stderr.split())
    page.write_text(f"# Ours\n{marks[0]}\nold\n{marks[1]}\nend\n", encoding="utf-8")
    measured(tmp_path / "a", *given)
    assert page.read_text(encoding="utf-8") == f"# Ours\n{marks[0]}\n{alone}{marks[1]}\nend\n"


def test_goes_on_where_it_was_ended(
    invoke: Callable[..., Result],
    measured: Callable[..., dict[str, Any]],
    results: dict[str, Any],
    held_out: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    some = (*FAST, "--bits", "W8A8")
    folder, quantized = tmp_path / "a", []
    quantize = measure.quantize

    def ended(pipe: object, recipe: Any, *given: Any, **named: Any) -> Any:
        quantized.append(recipe.name)
        if len(quantized) == 3:
            raise KeyboardInterrupt
        return quantize(pipe, recipe, *given, **named)

    monkeypatch.setattr(measure, "quantize", ended)
    assert invoke(folder, *some, sets=held_out).exit_code == 130
    assert len(json.loads((folder / "results.json").read_text(encoding="utf-8"))["cells"]) == 2
    page = (folder / "report.html").read_text(encoding="utf-8")
    for text in (page, (folder / "ablation.md").read_text(encoding="utf-8")):
        assert "Unfinished: 2 of 3 cells are there" in text
        assert "Not there yet: rtn at W8A8." in text
        assert "earest to full" not in text
        assert "inf to" not in text
    again = measured(folder, *some, sets=held_out)
    assert quantized == ["pcr W8A8", "ptq4dm W8A8", "rtn W8A8", "rtn W8A8"]
    for one, other in zip(results["cells"], again["cells"], strict=False):
        assert (one["artifact"], one["values"]) == (other["artifact"], other["values"])
    assert not list((folder / "work").iterdir())
    (lost,) = (folder / "cells").glob("W8A8-rtn-*")
    lost.unlink()
    assert cells(measured(folder, *some, sets=held_out))["W8A8", "rtn"]["values"] == again["cells"][-1]["values"]
    assert len(quantized) == 4  # the artifact was there still


def test_unfinished_work_of_another_number_of_threads_is_begun_anew(
    invoke: Callable[..., Result],
    measured: Callable[..., dict[str, Any]],
    results: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ended(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    some = (*FAST[:2], "--bits", "W8A8")
    monkeypatch.setattr(measure, "save", ended)
    assert invoke(tmp_path / "a", *some).exit_code == 130
    (work,) = (tmp_path / "a" / "work").iterdir()
    path = work / "fingerprint.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"number of threads": 1', '"number of threads": 7'))
    work.rename(work.with_name(f"{work.name[:-10]}0123456789"))
    monkeypatch.undo()
    (cell,) = measured(tmp_path / "a", *some)["cells"]
    assert cell["artifact"] == results["cells"][0]["artifact"]
    assert not list((tmp_path / "a" / "work").iterdir())


def test_shared_weights_give_the_artifacts_of_quantize(
    run: Callable[..., Result],
    measured: Callable[..., dict[str, Any]],
    model: Path,
    prompts: Path,
    tmp_path: Path,
) -> None:
    nearest = [
        part for method in ("pcr", "one-shot", "smoothquant") for part in ("--recipe", f"{method} rounding=nearest")
    ]
    results = measured(tmp_path / "a", *nearest, "--bits", "W4A6")
    for one in results["cells"][1:]:
        keys = one["keys"]
        own = ("--weights", keys["weights"], "--activations", keys["activations"], "--rounding", "nearest")
        target = tmp_path / f"{keys['method']}-{keys['activations']}"
        made = run(
            "quantize", model, "-o", target, "--method", keys["method"], *own,
            "--steps", 2, "--num-prompts", 2, "--prompts", prompts,
        )  # fmt: skip
        assert made.exit_code == 0, made.output
        assert one["artifact"] == artifact_digest(target)
        assert one["costs"].keys() == read_manifest(target)["cost"].keys()
    made_by = [path for path in (tmp_path / "a" / "artifacts").iterdir() if "rounding" in read_manifest(path)["cost"]]
    assert len(made_by) == 2  # weights of pcr serve one-shot, too
    files = {path.stat().st_ino for path in (tmp_path / "a" / "artifacts").glob("*/vae/*.safetensors")}
    assert len(files) == 1


def test_a_recipe_that_fails_does_not_end_the_others(
    invoke: Callable[..., Result], measured: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    given = ("--recipe", "broken: rtn relax=0.8:1@+2", "--recipe", "rtn", "--bits", "W8A8")
    result = invoke(tmp_path / "a", *given)
    assert result.exit_code == 1
    assert "failed: W8A8 broken: relax is 0.8:1@10, but rtn has one range" in " ".join(result.stderr.split())
    results = json.loads((tmp_path / "a" / "results.json").read_text(encoding="utf-8"))
    assert [one["problem"] is None for one in results["cells"]] == [False, True]
    assert results["against"] == "broken"
    assert not cells(results)["W8A8", "rtn"]["against"]
    assert "Failed. broken: relax is" in (tmp_path / "a" / "ablation.md").read_text(encoding="utf-8")
    again = invoke(tmp_path / "a", *given)
    assert again.exit_code == 1
    assert "W8A8 broken ..." in again.stderr  # tried again
    assert "W8A8 rtn ..." not in again.stderr
    measured(tmp_path / "a", "--recipe", "rtn", "--bits", "W8A8")  # the same folder, without it


def test_what_another_process_makes_is_left_to_it(
    invoke: Callable[..., Result], measured: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "a"
    measured(folder, "--recipes", "rtn", "--bits", "W8A8")
    (name,) = (path.name for path in (folder / "artifacts").iterdir())
    (path,) = (folder / "cells").glob("W8A8-rtn-*")
    path.unlink()
    with Folder(folder).claimed(name) as own:
        assert own
        result = invoke(folder, "--recipes", "rtn,one-shot", "--bits", "W8A8")
    assert result.exit_code == 0, result.output
    assert "W8A8 rtn: another process is at it" in result.stderr
    assert "Unfinished: 1 of 2 cells are there. Not there yet: rtn at W8A8." in result.stdout
    assert [one["recipe"] for one in json.loads((folder / "results.json").read_text())["cells"]] == ["one-shot"]
    assert len(measured(folder, "--recipes", "rtn,one-shot", "--bits", "W8A8")["cells"]) == 2


def test_a_damaged_cell_is_named(invoke: Callable[..., Result], tmp_path: Path) -> None:
    given = ("--recipes", "rtn", "--bits", "W8A8")
    assert invoke(tmp_path / "a", *given).exit_code == 0
    (path,) = (tmp_path / "a" / "cells").glob("W8A8-*")
    assert isinstance(read_cell(path), Cell)
    path.write_bytes(path.read_bytes()[:100])
    result = invoke(tmp_path / "a", *given)
    assert result.exit_code == 2
    assert f"{path} is damaged" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipes", "pcr,gptq"], "recipe 'gptq': 'gptq' is no method; known are pcr, best"),
        (["--recipe", "pcr relaxed=none"], "recipe 'pcr relaxed=none' at W8A8: unknown recipe key 'relaxed' = 'none'"),
        (["--recipe", "pcr relax"], "recipe 'pcr relax': 'relax' is no KEY=VALUE"),
        (["--recipe", "pcr steps=3"], "steps is the same for all recipes; give it by the option --steps"),
        (["--recipe", "pcr weights=3"], "weights is the same for all recipes; give it by the option --bits"),
        (["--recipe", "rtn", "--recipe", "rtn"], "two recipes are called 'rtn'"),
        (["--bits", "W4"], "bits is 'W4'; expected W and A with their numbers, e.g. W4A8"),
        (["--bits", "W9A8"], "weights is 9; it must be a whole number from 2 to 8"),
        (["--num-images", 5], "prompt set 'plain' has 4 prompts, num_images is 5"),
        (["--num-images", 2], "num_images is 2; intervals need at least 3"),
        (["--recipes", ","], "there is nothing to compare"),
        (["--against", "best", "--recipes", "rtn"], "against is 'best', which is not compared; the recipes are rtn"),
        (["--prompts", "sdp"], "prompts 'sdp': there is no such file"),
    ],
)
def test_refusals(invoke: Callable[..., Result], tmp_path: Path, options: list[object], message: str) -> None:
    result = invoke(tmp_path / "a", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "a").exists()


def test_unknown_bundled_sets_are_named(refused: Callable[..., str], tmp_path: Path) -> None:
    message = refused("ablate", "emoji-sd", "-o", tmp_path / "a", "--prompts", "coco,dsp")
    assert "bundled sets of emoji-sd are coco, sdp" in message
    message = refused("ablate", "emoji-sd", "-o", tmp_path / "a", "--num-images", 513)
    assert "prompt set 'coco' has 512 prompts, num_images is 513" in message


def test_another_ablations_folder(
    invoke: Callable[..., Result], run: Callable[..., Result], model: Path, held_out: list[object], tmp_path: Path
) -> None:
    given = ("--recipes", "rtn", "--bits", "W8A8")
    assert invoke(tmp_path / "a", *given).exit_code == 0
    result = invoke(tmp_path / "a", *given, "--guidance-scale", 3)
    assert result.exit_code == 2
    assert "holds an ablation with another plan; choose another directory" in " ".join(result.stderr.split())
    same = run("ablate", model, "-o", tmp_path / "a", *held_out, "--calibration-prompts", held_out[1], *SMALL, *given)
    assert "to be measured on and to calibrate with" in " ".join(same.stderr.split())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    result = invoke(tmp_path / "other", *given)
    assert "holds thesis.tex, which no ablation wrote" in " ".join(result.stderr.split())


def test_pictures_to_start_from(
    run: Callable[..., Result], prompts: Path, held_out: list[object], tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    picture(0).save(tmp_path / "images" / "0.png")
    pipeline(CASES["sd-img2img"]).save_pretrained(tmp_path / "model")
    given = ("ablate", tmp_path / "model", "-o", tmp_path / "a", *held_out[:2], "--calibration-prompts", prompts)
    given = (*given, *SMALL, "--runtime", "reference", "--recipes", "rtn", "--bits", "W8A8")
    given = (*given, "--steps", 4, "--pipeline-argument", "strength=0.5")
    assert "give image" in " ".join(run(*given).stderr.split())
    assert run(*given, "--images", tmp_path / "images").exit_code == 0
    results = json.loads((tmp_path / "a" / "results.json").read_text(encoding="utf-8"))
    assert len(results["cells"][0]["figures"]["plain"]["latent_mse_by_step"]) < 4
    assert results["cells"][0]["gap"] is None  # one set
