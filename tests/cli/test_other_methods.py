"""What other methods put into an artifact, as the commands tell it: halves of layers, and ranges found at run time."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tests.cli.conftest import manifest_of

FAST = ("--rounding", "nearest", "--steps", 2, "--num-prompts", 1)
LAYER = "mid_block.resnets.0.conv1"


@pytest.mark.parametrize("method", ["dynamic", "qdiffusion"])
def test_made_planned_inspected_and_run(
    run: Callable[..., Result],
    refused: Callable[..., str],
    model: Path,
    prompts: Path,
    tmp_path: Path,
    method: str,
) -> None:
    made = tmp_path / "made"
    quantize = ("quantize", model, "-o", made, "--prompts", prompts, "--method", method, *FAST)
    assert "nothing was written" in run(*quantize, "--dry-run").stdout
    assert not made.exists()
    assert run(*quantize).exit_code == 0
    assert f"--method {method}" in (made / "README.md").read_text(encoding="utf-8")
    assert run("generate", made, "a cat", "-o", tmp_path / "pictures", "--steps", 2).exit_code == 0

    names = [layer["name"] for layer in manifest_of(made)["layers"]]
    text = "".join(run("inspect", made, "--layers").stdout.split())
    assert all(name in text for name in names)
    assert ("up_blocks.0.resnets.0.conv1.skip" in names) == (method == "qdiffusion")
    shown = run("inspect", made, "--layer", LAYER).stdout
    document = json.loads(run("inspect", made, "--layer", LAYER, "--json").stdout)
    if method == "dynamic":
        assert f"{LAYER}: 8 bits at every step" in shown
        assert document == {"layer": LAYER, "dynamic_bits": 8}
        said = refused("inspect", made, "--layer", LAYER, "--plot", tmp_path / "plot.svg")
        assert "found at run time; there is nothing to plot" in said
    else:
        assert "one static range for all steps" in shown
        assert len(document["qparams"]) == 1
