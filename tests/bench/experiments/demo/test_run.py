"""The demo from end to end on the bundled pipeline, with few steps and pairs; its page and its figures."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import bitbrush
from bitbrush.artifact.sizes import denoiser_sizes
from bitbrush.bench.experiments.demo.run import (
    MODEL,
    PAGE,
    RESULTS,
    run_demo,
)
from bitbrush.bench.experiments.value_table import VALUES
from bitbrush.session.outputs import OutputBusyError, claimed
from tests.bench.results_files import read_results
from tests.recorded_progress import RecordedProgress

SMALL = {"steps": 2, "num_prompts": 1, "rounding": "nearest"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("demo") / "a new folder"
    progress = RecordedProgress()
    assert run_demo(directory, progress, keys=SMALL, pairs=2) == directory / PAGE
    progress.require_as_planned()
    return directory


def test_makes_page_results_and_artifacts_alone(demo: Path) -> None:
    assert {path.name for path in demo.iterdir()} == {PAGE, RESULTS, VALUES, f"{MODEL}-rtn", f"{MODEL}-best"}


def test_artifacts_can_be_loaded(demo: Path) -> None:
    assert bitbrush.read_manifest(demo / f"{MODEL}-best")["recipe"]["method"] == "best"
    pipe = bitbrush.load(demo / f"{MODEL}-rtn")
    assert pipe("a red apple", num_inference_steps=1).images[0].size == (64, 64)


def test_results_hold_every_figure(demo: Path) -> None:
    results = read_results(demo)
    assert set(results["metrics"]) == {"rtn", "best", "other seed"}
    for styles in results["metrics"].values():
        assert set(styles) == {"coco", "sdp"}
        for metrics in styles.values():
            median = metrics.pop("latent MSE, median")
            assert (median["low"], median["high"]) == (None, None)  # two images bound none
            assert set(metrics) == {"PSNR (dB)", "SSIM", "image MSE", "latent MSE, geometric mean", "latent MSE"}
            assert all(m["low"] <= m["mean"] <= m["high"] and m["n"] == 2 for m in metrics.values())
    assert all(len(errors) == 3 and min(errors) > 0 for errors in results["latent_mse_by_step"].values())
    assert {name: recipe["method"] for name, recipe in results["recipes"].items()} == {"rtn": "rtn", "best": "best"}


def test_page_says_what_the_results_say(demo: Path) -> None:
    page = (demo / PAGE).read_text(encoding="utf-8")
    metrics = json.loads((demo / RESULTS).read_text(encoding="utf-8"))["metrics"]
    rtn, best = (
        np.mean([metrics[name][style]["PSNR (dB)"]["mean"] for style in ("coco", "sdp")]) for name in ("rtn", "best")
    )
    assert f"{best:.1f} dB against {rtn:.1f} dB PSNR over 4 held-out prompts" in page
    assert "4 images are too few to tell best from round-to-nearest" in page
    assert page.count("<svg") == 3
    assert page.count('<article class="image-row"') == 2 * (2 + 2)  # usual and worst pairs of each style


def test_sizes_are_those_of_the_artifacts(demo: Path) -> None:
    told = json.loads((demo / RESULTS).read_text(encoding="utf-8"))["denoiser_bytes"]
    page = (demo / PAGE).read_text(encoding="utf-8")
    for name in ("rtn", "best"):
        sizes = denoiser_sizes(bitbrush.read_manifest(demo / f"{MODEL}-{name}"))
        assert told[name] == asdict(sizes)
        assert f"{sizes.packed / 2**20:.3g} MiB denoiser" in page
    assert sizes.checkpoint is not None
    assert f"{sizes.checkpoint / 2**20:.3g} MiB denoiser" in page
    assert f"{sizes.packed / sizes.checkpoint:.2g} of the checkpoint" in page
    assert f"{sizes.float32 / 2**20:.1f} in float32" in page


def test_nothing_of_someone_else_is_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all I have", encoding="utf-8")
    with pytest.raises(ValueError, match=r"holds thesis\.txt, which no demo wrote"):
        run_demo(tmp_path, keys=SMALL, pairs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_one_demo_at_a_time_writes_to_a_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as elsewhere:
        claim = claimed(tmp_path / "demo")
        elsewhere.submit(claim.__enter__).result()
        try:
            with pytest.raises(OutputBusyError, match="demo is in use"):
                run_demo(tmp_path / "demo", keys=SMALL, pairs=1)
        finally:
            elsewhere.submit(claim.__exit__, None, None, None).result()
    assert not list(tmp_path.iterdir())
