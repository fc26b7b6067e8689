"""The demo's page: the default method beside round-to-nearest, its worst pairs beside usual ones, honest sentences."""

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bitbrush.artifact.sizes import DenoiserSizes
from bitbrush.bench.experiments.demo.page import ROWS, demo_page
from bitbrush.bench.experiments.demo.results import DemoRun
from bitbrush.bench.images.generation import Generated
from bitbrush.bench.pages.page import render_page
from bitbrush.methods import METHODS
from tests.bench.pages.document import Document

STYLES, PAIRS, STEPS = ("coco", "sdp"), 8, 3


def quantized(method: str) -> Any:
    """What the page reads of a Quantization."""
    qparams = [SimpleNamespace(range=(-1.0 - step, 2.0 + step)) for step in range(STEPS)]
    layer = SimpleNamespace(name="conv_in", schedule=SimpleNamespace(qparams=qparams))
    return SimpleNamespace(
        recipe=METHODS[method].recipe({"weights": 4, "activations": 8}),
        average_activation_bits=8.4,
        source=SimpleNamespace(scheduler=object()),
        outcome=SimpleNamespace(layers=[layer]),
        costs={"rounding": SimpleNamespace(seconds=9.0, peak_mib=600.0)},
    )


def generated(noise: float, seed: int) -> dict[str, Generated]:
    """Images near those of full precision, the first one the farthest."""
    rng = np.random.default_rng(seed)
    scale = noise * np.linspace(2, 1, PAIRS)[:, None, None, None]
    base = np.random.default_rng(7).integers(60, 190, size=(PAIRS, 16, 16, 3))
    runs = {}
    for style in STYLES:
        images = (base + scale * rng.normal(size=base.shape)).clip(0, 255).astype(np.uint8)
        steps = np.ones((PAIRS, STEPS, 4, 2, 2), np.float32) + noise * rng.normal(size=(PAIRS, STEPS, 4, 2, 2))
        runs[style] = Generated(images, steps.astype(np.float32))
    return runs


@pytest.fixture
def run() -> DemoRun:
    sizes = DenoiserSizes(packed=6 << 20, float32=40 << 20, checkpoint=20 << 20)
    return DemoRun(
        model="emoji-sd",
        seed=1,
        prompts={style: [f"a <b>fox</b> {style} {index}" for index in range(PAIRS)] for style in STYLES},
        quantized={name: quantized(name) for name in ("rtn", "best")},
        sizes={"rtn": sizes, "best": sizes},
        reference=generated(0, 0),
        other_seed=generated(60, 1),
        candidates={"rtn": generated(20, 2), "best": generated(4, 3)},
    )


def first_two(images: Mapping[str, Generated]) -> dict[str, Generated]:
    return {"coco": Generated(images["coco"].images[:2], images["coco"].steps[:2])}


def test_says_how_much_nearer_the_default_method_is(run: DemoRun) -> None:
    page = demo_page(run)
    rtn, best = (run.all_pairs(name, "PSNR (dB)").mean() for name in ("rtn", "best"))
    assert page.verdict == f"best stays {best - rtn:.1f} dB nearer to full precision than round-to-nearest."
    assert f"{best:.1f} dB against {rtn:.1f} dB PSNR over 16 held-out prompts" in page.about[0]
    assert "in 6.0 MiB instead of the checkpoint's 20.0 (40.0 in float32)" in page.about[0]


def test_does_not_claim_what_the_images_do_not_show(run: DemoRun) -> None:
    equal = replace(run, candidates={"rtn": generated(4, 2), "best": generated(4, 2)})
    assert "best is not measurably nearer to full precision" in demo_page(equal).verdict
    few = replace(
        run,
        prompts={"coco": run.prompts["coco"][:2]},
        reference=first_two(run.reference),
        other_seed=first_two(run.other_seed),
        candidates={name: first_two(images) for name, images in run.candidates.items()},
    )
    assert demo_page(few).verdict == "2 images are too few to tell best from round-to-nearest."


def test_worst_pairs_stand_beside_usual_ones(run: DemoRun) -> None:
    for gallery in demo_page(run).galleries:
        usual, worst = gallery.groups
        assert [row.prompt for row in usual.rows] == list(run.prompts[gallery.heading][:ROWS])
        fidelity = run.metrics["best"][gallery.heading]["PSNR (dB)"]
        order = [run.prompts[gallery.heading][index] for index in np.argsort(fidelity)]
        assert [row.prompt for row in worst.rows] == order[:ROWS]
        assert worst.about == f"lowest PSNR of best among {PAIRS}"
        assert all([tile.name for tile in row.tiles] == ["full precision", "rtn", "best"] for row in usual.rows)


def test_shows_images_sizes_figures_and_how_far_machines_are_apart(run: DemoRun) -> None:
    html = render_page(demo_page(run))
    document = Document(html)
    assert len(document.all("img")) == 2 * 2 * ROWS * 3
    assert len(document.all("svg")) == 3
    for text in (
        "6 MiB denoiser",
        "0.3 of the checkpoint's size",
        "4-bit weights, 8.4-bit activations",
        "rounding 9 s",
    ):
        assert text in document.text
    assert "calibration saw no prompt of this style" in document.text
    assert "on another processor" in document.text
    assert html.count("<b>fox</b>") == 0
