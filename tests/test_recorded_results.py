"""What the docs say of the recorded results is in them."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks.docs_plots import docs_plots
from bitbrush.bench.experiments.ablate.markdown import ablation_markdown, marks
from bitbrush.bench.experiments.demo import page
from bitbrush.bench.pages.number_format import format_number

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
CANDIDATES = ["pcr W8A8", "pcr W4A8", "rtn W4A8"]
HIGHER = {"PSNR (dB)": 100.0, "SSIM": 1.0, "pairs alike (SSIM ≥ 0.95)": 1.0}
"""Metrics of which more is better, with what full precision has against itself; of all others that is 0."""
KERNELS = ["KID, unpaired terms (emoji-clip)", "CMMD, unpaired terms (emoji-clip)"]
"""Unbiased estimates of distances that are near 0 for both better candidates: chance orders them."""
LOWER = ["image MSE", "latent MSE", *(f"{name} (emoji-clip)" for name in (
    "Fréchet distance", "KID, unpaired terms", "CMMD, unpaired terms", "CLIP score change"))]  # fmt: skip


LIMITS = {"sd15": 8 * 1024, "sdxl": 16 * 1024}
"""MiB that quantizing a denoiser of that size may take."""


def test_quantizing_large_denoisers_took_no_more_than_a_modest_machine_has() -> None:
    document = json.loads((RESULTS / "quantize-scale.json").read_text(encoding="utf-8"))
    assert document["runs"]
    for key, rows in document["runs"].items():
        for name, row in rows.items():
            assert row["peak_mib"] <= LIMITS[key.partition("@")[0]], (key, name)
            calls = 2 if name.startswith("pcr") else 1
            assert list(row["calls_per_batch"].values())[-1] == calls * row["steps"], (key, name)


def test_200_generations_with_swapped_loras_needed_no_more_memory() -> None:
    document = json.loads((RESULTS / "lora-swaps.json").read_text(encoding="utf-8"))
    sizes = document["resident_mib"]
    growth = max(sizes[10:]) - max(sizes[:10])
    assert len(sizes) == document["generations"] == 200
    assert growth == document["growth_after_tenth_mib"] < document["adapter_mib"] / 5
    assert f"grew by {growth:.1f} MiB" in (DOCS / "how-to" / "lora.md").read_text(encoding="utf-8")


def test_the_docs_and_the_demo_say_how_far_images_move_between_machines() -> None:
    document = json.loads((RESULTS / "machines-emoji-sd.json").read_text(encoding="utf-8"))
    text = (DOCS / "benchmark.md").read_text(encoding="utf-8")
    assert document["method"] in page._MACHINES
    for name, row in document["comparisons"].items():
        mean = row["psnr"]
        interval = f"{mean['mean']:.1f} ({mean['low']:.1f} to {mean['high']:.1f})"
        assert f"| {name} | {interval} | {row['psnr_median']:.1f} | {row['psnr_lowest']:.1f} |" in text
        if name != "full precision":
            assert f"{mean['mean']:.1f} dB" in page._MACHINES


def test_after_every_recorded_kill_work_goes_on_to_the_same_bits() -> None:
    document = json.loads((RESULTS / "reliability-kills.json").read_text(encoding="utf-8"))
    assert document["right"] == document["total"] == len(document["kills"]) >= 50
    assert all(kill["right"] and kill["same bits"] for kill in document["kills"])
    text = (DOCS / "reliability.md").read_text(encoding="utf-8")
    assert f"{document['total']} kills" in text
    for left, count in document["left"].items():
        assert f"| {left} | {count} |" in text


ABLATION, DOCS = RESULTS / "ablation-emoji-sd.json", RESULTS.parents[1] / "docs"
TABLES = {
    "ablation-emoji-sd": "results.md",
    "ablation-emoji-sdxl": "results.md",
    "stages-emoji-sd": "stages/README.md",
    "paper-emoji-sd": "paper/README.md",
}


@pytest.mark.parametrize("name", TABLES)
def test_the_docs_have_the_recorded_ablations_tables(name: str) -> None:
    document = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    assert document["cells"]
    begin, end = marks(document["protocol"]["model"])
    section = (DOCS / TABLES[name]).read_text(encoding="utf-8").partition(f"{begin}\n")[2].partition(end)[0]
    assert section == ablation_markdown(document)


def test_the_docs_plots_are_of_the_recorded_results() -> None:
    """Every point tells its values; where it lies depends on matplotlib's version."""
    root, expected = RESULTS.parents[1], docs_plots()
    assert {str(path.relative_to(root)) for path in DOCS.rglob("plots/*.svg")} == set(expected)
    for path, plot in expected.items():
        svg = ET.parse(root / path).getroot()
        assert plot.title in svg.attrib["aria-label"]
        told = [title.text or "" for title in svg.iter("{http://www.w3.org/2000/svg}title")]
        points = [
            f"{one.name}\n{format_number(x)}: {format_number(y, digits=4)}"
            for one in plot.series
            for x, y in zip(one.x, one.y, strict=True)
        ]
        assert [text.partition(" (")[0] for text in told] == points, path


def test_the_readme_has_the_recorded_ablations_figures() -> None:
    document = json.loads(ABLATION.read_text(encoding="utf-8"))
    cells = {(cell["bits"], cell["recipe"]): cell["figures"] for cell in document["cells"]}
    lines = (RESULTS.parents[1] / "README.md").read_text(encoding="utf-8").splitlines()
    head = next(line for line in lines if line.startswith("| | `rtn`"))
    recipes = [cell.strip(" `") for cell in head.strip("|").split("|")[1:]]
    assert recipes[-1] == "best"
    for bits in document["bits"]:
        means = [cells[bits, recipe]["all prompt sets"]["psnr"] for recipe in recipes]
        told = [f"{one['mean']:.1f} ({one['low']:.1f} to {one['high']:.1f})" for one in means]
        assert f"| {bits} | {' | '.join(told)} |" in lines


@pytest.fixture(scope="module")
def together() -> dict[str, dict[str, Any]]:
    document = json.loads((RESULTS / "bench-emoji-sd.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in document["candidates"]] == CANDIDATES
    return {one["name"]: one["together"] for one in document["candidates"]}


@pytest.mark.parametrize("metric", [*HIGHER, *LOWER])
def test_every_metric_family_ranks_what_it_can(together: dict[str, dict[str, Any]], metric: str) -> None:
    sign = -1 if metric in HIGHER else 1
    losses = [sign * (together[name][metric]["mean"] - HIGHER.get(metric, 0.0)) for name in CANDIDATES]
    assert losses[-1] == max(losses)
    best, worst = (together[name][metric] for name in (CANDIDATES[0], CANDIDATES[-1]))
    if metric not in KERNELS:
        assert losses == sorted(losses)
    if metric not in ("latent MSE", *KERNELS):  # the latents of a quarter of the pictures are kept
        assert best["low"] > worst["high"] if metric in HIGHER else best["high"] < worst["low"]
    bounds = sorted(sign * (worst[bound] - HIGHER.get(metric, 0.0)) for bound in ("low", "high"))
    assert bounds[0] > 0  # apart from full precision itself
