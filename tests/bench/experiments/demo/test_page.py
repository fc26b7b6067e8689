"""The demo's page: everything in one file, nothing unescaped, and written whole or not at all."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bitbrush.bench.experiments.demo.page import (
    CandidateRow,
    DemoPage,
    GalleryRow,
    png_uri,
    render_page,
    write_page,
)
from bitbrush.bench.metrics.interval import Interval
from bitbrush.bench.pages.plots import (
    STEP_AXIS,
    Axis,
    LinePlot,
    Series,
)

NASTY = """a "fox" </p><script>alert('x')</script> & 'owl'"""
STYLES = ("coco", "sdp")
NAMES = ("full", "rtn", "pcr")
VOID = {"meta", "img", "input", "br"}


class Document(HTMLParser):
    """Tags with attributes, all text, and a check that every element is closed in its turn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def pictures(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 256, size=(8, 8, 3), dtype=np.uint8) for name in NAMES}


@pytest.fixture
def page() -> DemoPage:
    gallery = [
        GalleryRow(f"{NASTY} {style} {seed}", style, seed, pictures(seed), {"rtn": 21.25, "pcr": 35.0 + seed})
        for style in STYLES
        for seed in range(2)
    ]
    figures = {style: {"PSNR (dB)": Interval(35.2, 34.8, 35.6, 64)} for style in STYLES}
    candidates = [
        CandidateRow("full", "full precision", 32, 32, 20.0, 40.0, {}),
        CandidateRow("rtn", "rtn", 4, 8, 6.0, 40.0, {"coco": figures["coco"]}),
        CandidateRow("pcr", "pcr", 4, 8.4, 6.0, 40.0, figures | {"coco": {"SSIM": Interval(0.5, 0.5, 0.5, 1)}}),
    ]
    series = [Series("a & b", [0, 1], [1, 2]), Series(NASTY, [0, 1], [2, 1])]
    return DemoPage(
        title="Demo of <b>",
        verdict="It kept 35 dB & more.",
        command='bitbrush demo -o "a b" && true',
        facts={"Plan": "PNDM, 50 steps", "Cost <i>": "ranges 3 s\nrounding 9 s"},
        gallery=gallery,
        candidates=candidates,
        plots=[LinePlot("Error over the steps", series, STEP_AXIS, Axis("MSE"), "It grows.")],
    )


def test_needs_nothing_from_outside(page: DemoPage) -> None:
    html = render_page(page)
    assert set(re.findall(r"\w+://[^\s\"'<)]*", html)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|<link|src=\"(?!data:)|url\((?!data:)", html)


def test_every_row_picture_and_figure_is_there(page: DemoPage) -> None:
    document = Document(render_page(page))
    images = document.all("img")
    assert [image["src"] for image in images] == [png_uri(row.images[name]) for row in page.gallery for name in NAMES]
    assert [image["alt"] for image in images][:3] == [
        f"{label}: {NASTY} coco 0" for label in ("full precision", "rtn", "pcr")
    ]
    assert len(document.all("button")) == 8
    for text in (page.title, page.verdict, page.command, "21.2 dB", "36.0 dB", "35.20", "34.80 to 35.60", "8.4-bit"):
        assert text in document.text
    for text in (
        "64",
        "not measured",
        "ranges 3 s\nrounding 9 s",
        "Cost <i>",
        "It grows.",
        "0.3 of the checkpoint's size",
    ):
        assert text in document.text
    assert len(document.all("svg")) == 1


def test_prompts_are_escaped(page: DemoPage) -> None:
    html = render_page(page)
    document = Document(html)
    assert html.count("<script") == 1  # our own
    assert document.text.count(NASTY) == 4 + 3  # a series is named in the legend and at its two points
    assert "Demo of <b>" not in html


def test_works_without_plots_and_gallery(page: DemoPage) -> None:
    assert "Over the steps" not in Document(render_page(replace(page, plots=[], gallery=[]))).text


def test_pictures_keep_every_pixel() -> None:
    image = pictures(0)["full"]
    payload = base64.b64decode(png_uri(image).removeprefix("data:image/png;base64,"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(payload))), image)


def test_written_whole(page: DemoPage, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "page.html"
    write_page(page, path)
    assert path.read_text(encoding="utf-8") == render_page(page)
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_page(page: DemoPage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    path.write_text("old", encoding="utf-8")
    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            write_page(page, path)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_refusals(page: DemoPage) -> None:
    row = page.gallery[0]
    with pytest.raises(ValueError, match=r"candidates are \[\]"):
        replace(page, candidates=[])
    with pytest.raises(ValueError, match=r"\['full', 'full'\]"):
        replace(page, candidates=[page.candidates[0]] * 2)
    with pytest.raises(ValueError, match=r"images of \['full'\]"):
        replace(page, gallery=[replace(row, images={"full": row.images["full"]})])
    with pytest.raises(ValueError, match=r"no PSNR of \['pcr'\]"):
        replace(page, gallery=[replace(row, psnr={"rtn": 20.0})])
    with pytest.raises(ValueError, match=r"'pcr' is float32 \(8, 8, 3\)"):
        replace(page, gallery=[replace(row, images=row.images | {"pcr": np.zeros((8, 8, 3), np.float32)})])
