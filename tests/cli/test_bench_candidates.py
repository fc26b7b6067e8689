"""bitbrush bench: other packages, models and functions as candidates, those that fail, and gates."""

import json
import re
import shutil
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from diffusers import StableDiffusionPipeline

import bitbrush
from bitbrush.bench.experiments.bench.qdiffbench import agreed
from bitbrush.bench.experiments.foreign import quantized_by
from bitbrush.bench.peers import registry
from tests.bench.gguf_file import write_gguf
from tests.bench.pages.document import Document
from tests.bench.results_files import read_results
from tests.thread_ranks import in_threads

SMALL = ("--clip", "emoji-clip", "--num-images", 3, "--batch-size", 2, "--latents", 2, "--steps", 2)


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint(name, f"tests.bench.fake_peers:{place}", registry.GROUP)
        for name, place in {"fake": "FAKE", "absent": "ABSENT"}.items()
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == registry.GROUP else [])


@pytest.fixture
def pipelines(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the current directory whose functions return pipelines, or something else."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_pipelines.py").write_text(
        f"import bitbrush\n\ndef full():\n    return bitbrush.load_full_precision({str(model)!r})\n\n"
        "def nothing():\n    return None\n\ndef bad():\n    raise KeyError('weights')\n\nNAME = 'text'\n",
        encoding="utf-8",
    )
    return "my_pipelines"


@pytest.fixture
def bench(run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path) -> Callable[..., Any]:
    def invoke(*arguments: object, code: int = 0) -> tuple[dict[str, Any], str]:
        result = run("bench", model, *arguments, *SMALL, "-o", tmp_path / "bench", "--prompts", prompts)
        assert result.exit_code == code, result.output
        return read_results(tmp_path / "bench"), " ".join(result.output.split())

    return invoke


def test_a_peer_is_measured_like_an_artifact(bench: Callable[..., Any], model: Path, artifact: Path) -> None:
    results, _ = bench("fake:bf16", f"ours={artifact}", f"same={model}")
    peer, ours, same = results["candidates"]
    assert (peer["name"], peer["source"], peer["runtime"]) == (
        "fake:bf16", "fake:bf16", f"bitbrush {bitbrush.__version__}: bf16",
    )  # fmt: skip
    psnr = [one["sets"]["animals"]["figures"]["PSNR (dB)"]["mean"] for one in (peer, ours, same)]
    assert psnr[1] < psnr[0] < psnr[2] == 100
    assert peer["float32_mib"] == same["float32_mib"] == same["memory_mib"] == results["reference"]["memory_mib"]
    assert peer["denoiser_mib"] == pytest.approx(same["memory_mib"] / 2, rel=0.01)  # bfloat16, where it were stored
    assert (peer["weight_bits"], peer["activation_bits"]) == (pytest.approx(32), 16)
    assert peer["operators"]["Conv2d, float32"] > 0
    assert "takes no less memory than full precision" in peer["notes"]
    assert all(one["seconds_per_image"] > 0 for one in (results["reference"], peer, ours, same))


def test_a_function_of_the_current_directory_returns_a_candidate(bench: Callable[..., Any], pipelines: str) -> None:
    results, _ = bench(f"mine={pipelines}:full")
    (mine,) = results["candidates"]
    assert (mine["source"], mine["runtime"]) == ("my_pipelines:full", "function: my_pipelines:full")
    assert mine["sets"]["animals"]["figures"]["PSNR (dB)"]["mean"] == 100


def test_what_fails_to_load_or_run_is_a_row(bench: Callable[..., Any], pipelines: str, tmp_path: Path) -> None:
    failing = ("fake:refuses", "fake:fails", f"{pipelines}:nothing", f"{pipelines}:bad")
    results, output = bench("fake:bf16", *failing, code=1)
    good, *bad = results["candidates"]
    assert good["problem"] is None
    problems = {one["name"]: one["problem"] for one in bad}
    assert problems == {
        "fake:refuses": "TypeError: no kernel for this layer",
        "fake:fails": "NotImplementedError: no product of these types",
        "my_pipelines:nothing": "my_pipelines:nothing returns a NoneType; it must return a diffusers pipeline",
        "my_pipelines:bad": "KeyError: 'weights'",
    }
    page = (tmp_path / "bench" / "report.html").read_text(encoding="utf-8")
    for name, problem in problems.items():
        assert f"{name} was not measured: {problem}" in output
        assert problem.replace("'", "&#39;") in page


def test_unknown_candidates_are_refused_before_anything_is_generated(
    refused: Callable[..., str], model: Path, prompts: Path, pipelines: str, tmp_path: Path
) -> None:
    def message(candidate: str) -> str:
        return refused("bench", model, candidate, *SMALL, "-o", tmp_path / "b", "--prompts", prompts)

    assert "did you mean 'torchao'?" in message("torchoa:int8dq")
    assert "did you mean 'bf16'?" in message("fake:bf61")
    assert "pip install absent-quantizer" in message("absent:int8")
    assert "names neither a peer (" in message("no_such_module:pipeline")
    assert "has no attribute 'ful'" in message(f"{pipelines}:ful")
    assert "is a str; name a function" in message(f"{pipelines}:NAME")
    (tmp_path / "broken_pipelines.py").write_text("def (:", encoding="utf-8")
    assert "SyntaxError: invalid syntax" in message("broken_pipelines:full")
    assert "there is none at 'nowhere.gguf'" in message("gguf:nowhere.gguf")
    assert not (tmp_path / "b").exists()


def test_gates_set_the_exit_status_and_name_the_pairs(
    bench: Callable[..., Any], model: Path, artifact: Path, tmp_path: Path
) -> None:
    gates = ("--gate", "psnr>=99.5", "--gate", "median(ssim)>=0.01")
    results, output = bench(f"ours={artifact}", f"same={model}", *gates, code=3)
    held = {(one["candidate"], one["gate"]): one["passed"] for one in results["gates"]}
    assert held == {
        ("ours", "psnr>=99.5"): False,
        ("ours", "median(ssim)>=0.01"): True,
        ("same", "psnr>=99.5"): True,
        ("same", "median(ssim)>=0.01"): True,
    }
    assert "ours fails psnr>=99.5 on animals: " in output
    assert len(re.findall(r"image \d, seed 1: a (?:red cat|blue dog|green owl)", output)) == 3
    page = Document((tmp_path / "bench" / "report.html").read_text(encoding="utf-8"))
    assert "Gates do not hold for ours." in page.text
    assert "denoising, seconds per image" in page.text
    results, _ = bench(f"same={model}", *gates)
    assert all(one["passed"] for one in results["gates"])


def test_a_gate_of_no_metric_is_refused_at_once(
    refused: Callable[..., str], model: Path, artifact: Path, prompts: Path, tmp_path: Path
) -> None:
    def message(gate: str) -> str:
        return refused("bench", model, artifact, *SMALL, "-o", tmp_path / "b", "--prompts", prompts, "--gate", gate)

    assert "did you mean 'psnr'?" in message("pnsr>=25")
    assert "--lpips FILE" in message("lpips<=0.15")
    assert not (tmp_path / "b").exists()


def test_python_takes_gates_and_peers(model: Path, prompts: Path, tmp_path: Path) -> None:
    results = bitbrush.benchmark(
        str(model),
        {"peer": "fake:bf16", "failing": "fake:fails"},
        tmp_path / "python",
        prompts=[str(prompts)],
        clip="emoji-clip",
        num_images=3,
        steps=2,
        gates=["psnr>=5"],
    )
    assert [one["problem"] is None for one in results["candidates"]] == [True, False]
    assert [(one["candidate"], one["passed"]) for one in results["gates"]] == [("peer", True)]


def test_a_pipeline_that_another_package_quantized_before_is_loaded_by_it(
    bench: Callable[..., Any], refused: Callable[..., str], model: Path, prompts: Path, tmp_path: Path
) -> None:
    saved = Path(shutil.copytree(model, tmp_path / "saved"))
    config = saved / "unet" / "config.json"
    scheme = {"quant_method": "no_such_method"}
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": scheme}))
    assert quantized_by(str(model)) is None
    assert quantized_by(str(saved)) == "no_such_method"
    results, _ = bench(f"same={model}", saved, code=1)
    assert "no_such_method" in results["candidates"][1]["problem"]
    said = refused("bench", saved, f"same={model}", *SMALL, "-o", tmp_path / "b", "--prompts", prompts)
    assert "it is quantized already" in said  # which a reference must not be


def test_what_one_process_cannot_measure_none_does() -> None:
    problems = in_threads(3, lambda ranks: agreed("no memory" if ranks.rank == 1 else None, ranks))
    another = "another process could not measure it"
    assert problems == [another, "no memory", another]
    assert in_threads(2, lambda ranks: agreed(None, ranks)) == [None, None]


def test_a_preference_metric_is_a_figure_with_its_difference_and_a_gate(bench: Callable[..., Any], model: Path) -> None:
    results, _ = bench("fake:bf16", f"same={model}", "--metric", "pickscore=emoji-clip", "--gate", "pickscore>=-999")
    assert [one["name"] for one in results["metrics"]] == ["PickScore (emoji-clip)"]
    for one in results["candidates"]:
        figures = one["sets"]["animals"]["figures"]
        assert figures["PickScore (emoji-clip), difference"]["n"] == 3
    assert figures["PickScore (emoji-clip), difference"]["mean"] == 0
    assert all(one["passed"] and one["pairs"] == 3 for one in results["gates"])


@pytest.mark.filterwarnings("ignore")
def test_a_gguf_file_is_a_candidate(
    bench: Callable[..., Any], tiny_pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    write_gguf(tiny_pipe, str(tmp_path / "tiny-q8.gguf"))
    results, _ = bench(f"gguf:{tmp_path / 'tiny-q8.gguf'}")
    (one,) = results["candidates"]
    assert one["name"] == "tiny-q8.gguf"
    assert one["runtime"].endswith(": tiny-q8.gguf")
    assert one["memory_mib"] < results["reference"]["memory_mib"]
    assert one["sets"]["animals"]["figures"]["PSNR (dB)"]["mean"] > 30
