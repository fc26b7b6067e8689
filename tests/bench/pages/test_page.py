"""The page of all experiments: everything in one file, nothing unescaped, in one order, and usable without a script."""

import base64
import io
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bitbrush.bench.metrics.interval import Interval
from bitbrush.bench.pages.images import SHOWN, image_uri, png_uri, size_note
from bitbrush.bench.pages.page import (
    Card,
    Cell,
    Gallery,
    ImageGroup,
    ImageRow,
    Page,
    PlotSection,
    Row,
    Table,
    TableSection,
    Tile,
    Tone,
    interval_cell,
    render_page,
)
from bitbrush.bench.pages.plots import STEP_AXIS, Axis, LinePlot, Series
from bitbrush.bench.pages.prompt_sets import counted, explained
from tests.bench.pages.document import Document

BROWSER = shutil.which("chromium")
NASTY = """a "fox" </p><script>alert('x')</script> & 'owl'"""
NAMES = ("full precision", "rtn", "best")


def noise(seed: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=(size, size, 3), dtype=np.uint8)


def image_row(seed: int, label: str = "") -> ImageRow:
    notes = {"rtn": "21.2 dB", "best": "36.0 dB"}
    tiles = [Tile(name, noise(seed + place), notes.get(name, "")) for place, name in enumerate(NAMES)]
    return ImageRow(f"{NASTY} {seed}", f"coco {seed}", tiles, label)


@pytest.fixture
def page() -> Page:
    groups = [
        ImageGroup("Usual pairs", "the first prompts", [image_row(seed) for seed in range(0, 60, 10)]),
        ImageGroup("Worst pairs", "lowest SSIM", [image_row(90, "worst of rtn")]),
    ]
    figures = [interval_cell(Interval(35.2, 34.8, 35.6, 64)), None, Cell("1", "two\nlines", Tone.GOOD, 40)]
    plot = LinePlot("Error", [Series("a & b", [0, 1], [1, 2]), Series(NASTY, [0, 1], [2, 1])], STEP_AXIS, Axis("MSE"))
    return Page(
        title="Page of <b>",
        verdict="It kept 35 dB & more.",
        facts={"Plan": "PNDM, 50 steps", "Cost <i>": "ranges 3 s\nrounding 9 s"},
        command='bitbrush demo -o "a b" && true',
        about=["Over <64> images."],
        warnings=["Unfinished."],
        images_about="Each row starts from the same noise.",
        galleries=[Gallery("coco", explained("coco", "calibration style"), groups)],
        quality=PlotSection(
            "Quality against size", [plot], [Card(NASTY, "5 MiB", ["small"], Tone.BAD, 0.27)], "a rule"
        ),
        tables=[
            TableSection(
                "All figures", "Means.", [Table("coco", ["a", "b", "c"], [Row("rtn", figures)])], ["No LPIPS."]
            )
        ],
        plots=PlotSection("Over the steps", [replace(plot, title="Range", caption="It grows.")]),
    )


def test_needs_nothing_from_outside(page: Page) -> None:
    html = render_page(page)
    assert set(re.findall(r"\w+://[^\s\"'<)]*", html)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|<link|src=\"(?!data:)|url\((?!data:)", html)
    assert "default-src 'none'" in html


def test_everything_is_there(page: Page) -> None:
    document = Document(render_page(page))
    rows = [row for gallery in page.galleries for group in gallery.groups for row in group.rows]
    images = document.all("img")
    assert [image["src"] for image in images] == [png_uri(tile.image) for row in rows for tile in row.tiles]
    assert [image["alt"] for image in images][:3] == [f"{name}: {NASTY} 0" for name in NAMES]
    assert len(document.all("button")) == len(document.classes("frame")) == 2 * len(rows)
    assert len(document.all("svg")) == 2
    for text in (page.title, page.verdict, page.command, *page.about, *page.warnings, "21.2 dB", "35.20", "It grows."):
        assert text in document.text
    for text in ("34.80 to 35.60", "two", "lines", "ranges 3 s\nrounding 9 s", "Cost <i>", "No LPIPS.", "a rule", "–"):
        assert text in document.text


def test_one_heading_says_the_verdict_and_sections_come_in_one_order(page: Page) -> None:
    html = render_page(page)
    assert len(Document(html).all("h1")) == 1
    headings = (
        "<h1>It kept",
        ">Images<",
        ">Usual pairs",
        ">Worst pairs",
        ">Quality against",
        ">All fig",
        ">Over the",
        ">How this",
    )
    places = [html.index(heading) for heading in headings]
    assert places == sorted(places)


def test_prompts_and_names_are_escaped(page: Page) -> None:
    html = render_page(page)
    assert html.count("<script") == 1  # our own
    # Seven prompts, a card, and a series of two plots, which is named in the legend and at its two points.
    assert Document(html).text.count(NASTY) == 7 + 1 + 2 * 3
    assert "Page of <b>" not in html


def test_worst_rows_say_why_they_are_shown_and_prompt_sets_what_they_are(page: Page) -> None:
    document = Document(render_page(page))
    assert "worst of rtn" in document.text
    assert "sentences in the style of COCO's captions; calibration used other prompts of this style" in document.text
    assert explained("mine", "unseen style") == "calibration saw no prompt of this style"
    assert explained("sdp") == "lists of keywords in the style of Stable Diffusion prompts"
    assert explained("mine") == ""
    assert counted("sdp", 32) == "32 of sdp: lists of keywords in the style of Stable Diffusion prompts"
    assert counted("mine", 3) == "3 of mine"


def test_many_rows_are_folded_and_all_tables_scroll_by_keyboard(page: Page) -> None:
    document = Document(render_page(page))
    assert "2 more" in document.text  # of six usual rows
    scrolled = [attributes for _, attributes in document.tags if attributes.get("class") == "table-scroll"]
    assert len(scrolled) == len(document.all("table")) == 1
    assert scrolled[0]["tabindex"] == "0"
    assert scrolled[0]["aria-label"] == "All figures: coco"


def test_sections_that_an_experiment_lacks_are_left_out(page: Page) -> None:
    html = render_page(replace(page, galleries=[], quality=None, tables=[], plots=None, about=[]))
    assert re.findall(r"<h2[^>]*>([^<]*)</h2>", html) == ["How this was made"]


def test_small_images_keep_every_pixel_and_large_ones_are_shown_smaller() -> None:
    payload = base64.b64decode(png_uri(noise(0)).removeprefix("data:image/png;base64,"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(payload))), noise(0))
    assert image_uri(noise(0, 64)) == png_uri(noise(0, 64))
    assert size_note(noise(0, 64)) == ""
    large = np.repeat(np.repeat(noise(0, 64), 16, 0), 16, 1)
    assert image_uri(large).startswith("data:image/webp")
    assert len(image_uri(large)) < SHOWN * SHOWN
    assert f"{SHOWN} pixels" in size_note(large)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"'rtn' is float32 \(8, 8, 3\)"):
        Tile("rtn", np.zeros((8, 8, 3), np.float32))
    tile = Tile("rtn", noise(0))
    for tiles, names in (((), r"\[\]"), ((tile, tile), r"\['rtn', 'rtn'\]")):
        with pytest.raises(ValueError, match=f"images of {names}"):
            ImageRow("a fox", "coco 0", tiles)
    with pytest.raises(ValueError, match="row 'rtn' has 1 cells, but there are 2 columns"):
        Table("coco", ["a", "b"], [Row("rtn", [None])])


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        quiet += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
        command = [str(BROWSER), *quiet, "--enable-logging=stderr", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

    return run


@pytest.mark.skipif(BROWSER is None, reason="needs chromium on the path")
def test_a_browser_finds_no_fault_and_makes_the_images_comparable(
    page: Page, browse: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    static = render_page(page)
    assert static.count('<label class="slider" hidden>') == 7  # no control that does nothing
    assert static.count(' disabled aria-label="') == 14
    (tmp_path / "page.html").write_text(static, encoding="utf-8")
    browsed = browse("--dump-dom", (tmp_path / "page.html").as_uri())
    assert "CONSOLE" not in browsed.stderr
    assert browsed.stdout.count('class="over"') == 14
    assert not re.search(r'class="(slider|difference|frame)"[^>]* (hidden|disabled)', browsed.stdout)
