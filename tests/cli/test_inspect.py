"""bitbrush inspect: what an artifact holds, for people and as JSON."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from bitbrush.artifact.single_file import pack

LAYER = "mid_block.resnets.0.conv1"


def test_summary(run: Callable[..., Result], artifact: Path) -> None:
    text = run("inspect", artifact).stdout
    for part in (
        "pcr, W4A8, nearest rounding",
        "0.8:1@10",
        "PNDMScheduler, 2 steps",
        "MiB",
        "4-bit weights",
        "diffusers",
    ):
        assert part in " ".join(text.split())
    assert "floating point (recipe: exclude *attn2.to_k)" in " ".join(text.split())


@pytest.fixture
def single(artifact: Path, tmp_path: Path) -> Path:
    """The same artifact as a single file."""
    pack(artifact, tmp_path / "one.safetensors")
    return tmp_path / "one.safetensors"


@pytest.mark.parametrize("options", [(), ("--layers",), ("--json",), ("--layer", LAYER), ("--layer", LAYER, "--json")])
def test_a_single_file_is_shown_as_its_folder(
    run: Callable[..., Result], artifact: Path, single: Path, options: tuple[str, ...]
) -> None:
    shown = [run("inspect", place, *options).stdout.replace(str(place), "PLACE") for place in (artifact, single)]
    assert shown[0]
    assert " ".join(shown[0].split()) == " ".join(shown[1].split())


@pytest.mark.parametrize("options", [(), ("--layer", LAYER)])
def test_a_single_files_plot_is_that_of_its_folder(
    run: Callable[..., Result], artifact: Path, single: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    for number, place in enumerate((artifact, single)):
        assert run("inspect", place, *options, "--plot", tmp_path / f"{number}.svg").exit_code == 0
    assert (tmp_path / "0.svg").read_bytes() == (tmp_path / "1.svg").read_bytes()


def test_every_layer_is_listed(run: Callable[..., Result], artifact: Path) -> None:
    text = run("inspect", artifact, "--layers").stdout
    layers = json.loads(run("inspect", artifact, "--json").stdout)["layers"]
    joined = "".join(text.split())
    assert all(layer["name"] in joined for layer in layers)


def test_a_layers_range(run: Callable[..., Result], artifact: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plots" / "range.svg"
    result = run("inspect", artifact, "--layer", LAYER, "--plot", plot)
    assert result.exit_code == 0
    assert LAYER in result.stdout
    assert "━" in result.stdout
    assert plot.read_text(encoding="utf-8").startswith("<svg")
    all_qparams = json.loads(run("inspect", artifact, "--layer", LAYER, "--json").stdout)["qparams"]
    assert [qparams["timestep"] for qparams in all_qparams] == [501.0, 1.0]
    assert all(qparams["low"] <= 0 <= qparams["high"] and qparams["bits"] == 8 for qparams in all_qparams)


def test_bits_of_all_layers_are_plotted(run: Callable[..., Result], artifact: Path, tmp_path: Path) -> None:
    result = run("inspect", artifact, "--plot", tmp_path / "bits.svg")
    assert result.exit_code == 0
    plot = (tmp_path / "bits.svg").read_text(encoding="utf-8")
    assert plot.startswith("<svg")
    assert "mean of the layers" in plot


@pytest.mark.parametrize(("name", "signature"), [("a.png", b"\x89PNG"), ("a.SVG", b"<svg"), ("a.pdf", b"%PDF")])
@pytest.mark.parametrize("options", [(), ("--layer", LAYER)])
def test_a_plots_suffix_says_its_format(
    run: Callable[..., Result], artifact: Path, tmp_path: Path, options: tuple[str, ...], name: str, signature: bytes
) -> None:
    assert run("inspect", artifact, *options, "--plot", tmp_path / name).exit_code == 0
    assert (tmp_path / name).read_bytes().startswith(signature)


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.svgz"])
def test_a_plot_of_another_format_is_refused(
    refused: Callable[..., str], artifact: Path, tmp_path: Path, name: str
) -> None:
    said = refused("inspect", artifact, "--plot", tmp_path / name)
    assert "has no known format; let its name end in .svg, .png, .pdf" in " ".join(said.split())
    assert not (tmp_path / name).exists()


def test_a_static_range_is_named_so(run: Callable[..., Result], model: Path, prompts: Path, tmp_path: Path) -> None:
    options = ("--method", "rtn", "--steps", 2, "--num-prompts", 1)
    run("quantize", model, "-o", tmp_path / "rtn", "--prompts", prompts, *options)
    assert "one static range for all steps" in run("inspect", tmp_path / "rtn", "--layer", LAYER).stdout


def test_bad_input_is_refused(refused: Callable[..., str], artifact: Path, tmp_path: Path) -> None:
    said = refused("inspect", artifact, "--layer", "mid_block.resnets.0.conv")
    assert "is not among the" in said
    assert "near are mid_block.resnets.0.conv" in said
    assert "is no bitbrush artifact" in refused("inspect", tmp_path / "nowhere")
