"""What executes an artifact: chosen by name, told before anything runs, recorded with what it made."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from bitbrush.network.layers import QuantizedLayer
from bitbrush.runtime.interface import RuntimeUnavailable
from bitbrush.runtime.onednn import lowering, probe

SMALL = ("--num-images", 3, "--latents", 0, "--clip", "emoji-clip")


@pytest.fixture(autouse=True)
def _exact() -> None:
    try:
        probe.require_exact_products()
    except RuntimeUnavailable as error:
        pytest.skip(str(error))


def facts(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "images.json").read_text(encoding="utf-8"))
    return found


def test_integers_are_the_default(run: Callable[..., Result], artifact: Path, tmp_path: Path) -> None:
    result = run("generate", artifact, "a cat", "-o", tmp_path / "made")
    assert result.exit_code == 0, result.output
    assert "onednn: oneDNN u8 x s8" in result.stderr
    assert "quantized layers run in integers" in result.stderr
    assert "onednn: oneDNN u8 x s8" in json.dumps(facts(tmp_path / "made"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--runtime", "reference"), "reference: fake quantization in float32 (asked for)"),
        (("--dtype", "float32"), "float32 between the products"),
        (("--dtype", "bfloat16", "--memory", "low"), "bfloat16 between the products"),
    ],
)
def test_others_can_be_asked_for(
    run: Callable[..., Result], artifact: Path, tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    result = run("generate", artifact, "a cat", "-o", tmp_path / "made", *options)
    assert result.exit_code == 0, result.output
    assert told in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--runtime", "fast"), "runtime is 'fast'; choose from auto, reference, onednn"),
        (("--dtype", "fp8"), "dtype is 'fp8'; choose from float32, bfloat16"),
        (("--memory", "none"), "memory is 'none'; choose from expanded, low"),
        (("--runtime", "reference", "--memory", "low"), "the reference runtime expands every weight"),
    ],
)
def test_what_cannot_be_had_is_refused(
    refused: Callable[..., str], artifact: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    assert message in refused("generate", artifact, "a cat", "-o", tmp_path / "made", *options)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("options", [(), ("--runtime", "reference")])
def test_compare_records_it(
    run: Callable[..., Result], model: Path, artifact: Path, prompts: Path, options: tuple[str, ...]
) -> None:
    result = run("compare", model, artifact, "--prompts", prompts, "--num-prompts", 2, "--json", *options)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["protocol"]["execution"].startswith("reference" if options else "onednn")


def test_results_and_report_tell_how_layers_run(
    run: Callable[..., Result], model: Path, artifact: Path, prompts: Path, tmp_path: Path
) -> None:
    found = {}
    for name in ("onednn", "reference"):
        options = ("--prompts", prompts, "--runtime", name, "--pictures", tmp_path / "pictures", *SMALL)
        result = run("bench", model, f"ours={artifact}", "-o", tmp_path / name, *options)
        assert result.exit_code == 0, result.output
        results = json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8"))
        (found[name],) = results["candidates"]
        assert results["reference"]["runtime"] == "torch: float32"
    quantized = sum(n for kind, n in found["onednn"]["operators"].items() if "float32" not in kind)
    assert (found["onednn"]["int8_layers"], found["onednn"]["fallbacks"]) == (quantized, {})
    ((how, layers),) = found["reference"]["fallbacks"].items()
    assert "the reference runtime emulates integers" in how
    assert (found["reference"]["int8_layers"], len(layers)) == (0, quantized)
    page = (tmp_path / "reference" / "report.html").read_text(encoding="utf-8")
    assert "quantized, yet in floating point" in page
    assert how in page
    sets = {path.parent.name for path in (tmp_path / "pictures" / "ours").rglob("set.json")}
    assert len(sets) == 2  # pictures of two executors are never mixed


def test_inspect_names_what_falls_back(
    run: Callable[..., Result], artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "0 of" not in (text := run("inspect", artifact).stdout)
    assert "quantized layers run in integers" in text
    assert "u8 x s8, int32 sums (oneDNN)" in run("inspect", artifact, "--layers").stdout
    original = lowering._reason

    def reason(layer: torch.nn.Module, quantized: QuantizedLayer, signed: torch.Tensor | None) -> str | None:
        return "it is too wide" if isinstance(layer, torch.nn.Conv2d) else original(layer, quantized, signed)

    monkeypatch.setattr(lowering, "_reason", reason)
    told = " ".join(run("inspect", artifact).stdout.split())
    assert "as fake-quantized float32: it is too wide: " in told
