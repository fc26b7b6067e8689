"""Plots: points where they belong, ticks at round numbers, colours of the page, files, and what is refused."""

import io
import math
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import bitbrush
from bitbrush.bench.pages.plot_files import (
    DARK,
    DARK_INK,
    DARK_PAPER,
    PAPER,
    page_svg,
    plot_file,
)
from bitbrush.bench.pages.plots import (
    COLOURS,
    INK,
    STEP_AXIS,
    Axis,
    LinePlot,
    Scale,
    Series,
)

SVG = "{http://www.w3.org/2000/svg}"
STEPS = [0, 1, 2, 3, 4]
ERROR = Axis("error")
LOG_ERROR = Axis("error", Scale.LOG)
NASTY = 'one"shot', "<b>&amp; $x_1$", "_hidden", "渐进"


def plot_of(*series: Series, x_axis: Axis = STEP_AXIS, y_axis: Axis = ERROR) -> LinePlot:
    return LinePlot("A < B & C", series, x_axis, y_axis)


def draw(*series: Series, x_axis: Axis = STEP_AXIS, y_axis: Axis = ERROR) -> ET.Element:
    return ET.fromstring(page_svg(plot_of(*series, x_axis=x_axis, y_axis=y_axis)))


def texts(svg: ET.Element, group: str) -> list[str]:
    return [element.text or "" for element in svg.iterfind(f"{SVG}g[@class='{group}']/{SVG}text")]


def ticks(svg: ET.Element, axis: str) -> list[str]:
    """Without the label of the x axis; that of the y axis stands above the lines."""
    return [text for text in texts(svg, axis) if text != STEP_AXIS.label]


def centres(svg: ET.Element) -> np.ndarray:
    return np.array([[float(circle.attrib["cx"]), float(circle.attrib["cy"])] for circle in svg.iter(f"{SVG}circle")])


def vertices(path: ET.Element) -> np.ndarray:
    return np.array(re.findall(r"[ML] (\S+) (\S+)", path.attrib["d"]), dtype=float)


def tick_heights(svg: ET.Element) -> dict[str, float]:
    """Tick label -> y of its grid line, which is drawn before it."""
    axis = svg.find(f"{SVG}g[@class='y-axis']")
    assert axis is not None
    return {text.text or "": vertices(line)[0, 1] for line, text in pairwise(axis) if text.tag == f"{SVG}text"}


def test_points_lie_on_their_grid_lines() -> None:
    svg = draw(Series("a", STEPS, [0, 10, 20, 30, 40]))
    heights = tick_heights(svg)
    points = centres(svg)
    assert points[:, 1] == pytest.approx([heights[label] for label in ("0", "10", "20", "30", "40")])
    assert np.diff(points[:, 0]) == pytest.approx([points[1, 0] - points[0, 0]] * 4, abs=0.02)
    assert points[0, 1] > points[-1, 1]  # up is more


def test_points_lie_on_their_grid_lines_in_powers_of_ten() -> None:
    svg = draw(Series("a", STEPS, [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]), y_axis=LOG_ERROR)
    heights = tick_heights(svg)
    assert list(heights) == ["10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²", "10⁻¹"]
    assert centres(svg)[:, 1] == pytest.approx(list(heights.values()))


def test_line_and_band_go_through_the_values() -> None:
    svg = draw(Series("a", STEPS, [1, 2, 3, 4, 5], low=[0] * 5, high=[6] * 5))
    line, band = svg.find(f"{SVG}g[@class='series']/{SVG}path"), svg.find(f"{SVG}path[@fill='currentColor']")
    assert line is not None
    assert band is not None
    points = centres(svg)
    assert vertices(line).tolist() == points.tolist()
    edge, heights = vertices(band), tick_heights(svg)
    assert edge[:5, 1] == pytest.approx([heights["6"]] * 5)
    assert edge[5:10, 1] == pytest.approx([heights["0"]] * 5)
    assert edge[:5, 0].tolist() == points[:, 0].tolist()
    assert edge[5:10, 0].tolist() == points[::-1, 0].tolist()


def test_says_what_it_shows() -> None:
    band = Series("pcr", STEPS, [2] * 5, [1] * 5, [3] * 5)
    svg = draw(*(Series(name, np.arange(5), np.ones(5)) for name in NASTY), band, y_axis=Axis("MSE (dB)"))
    assert svg.attrib["role"] == "img"
    assert all(text in svg.attrib["aria-label"] for text in ("A < B & C", *NASTY, "MSE (dB)", STEP_AXIS.label))
    assert sorted(texts(svg, "legend")) == sorted([*NASTY, "pcr"])
    assert ticks(svg, "x-axis") == ["0", "1", "2", "3", "4"]
    labels = [element.text for element in svg.iter(f"{SVG}text")]
    assert [labels.count(text) for text in ("MSE (dB)", STEP_AXIS.label, "A < B & C")] == [1, 1, 0]
    tooltips = [title.text or "" for title in svg.iter(f"{SVG}title")]
    assert len(tooltips) == 25
    assert tooltips[6] == f"{NASTY[1]}\n1: 1"
    assert tooltips[24] == "pcr\n4: 2 (1 to 3)"


def test_a_line_that_is_called_as_its_axis_needs_no_legend() -> None:
    assert texts(draw(Series("rtn", STEPS, STEPS)), "legend") == ["rtn"]
    assert not texts(draw(Series(ERROR.label, STEPS, STEPS)), "legend")


def test_series_differ_in_colour_and_dashes() -> None:
    svg = draw(*(Series(str(index), STEPS, [index] * 5) for index in range(6)))
    groups = svg.findall(f"{SVG}g[@class='series']")
    assert len({group[0].attrib.get("stroke-dasharray") for group in groups}) == 6
    assert len({group.attrib["style"] for group in groups}) == 6


def test_everything_stays_inside() -> None:
    names = ["a rather long name of a series", "another one that is long", "short", "a third one, longer than most"]
    svg = draw(*(Series(name, STEPS, [-1e-7, 0, 2e-7, 3, 1]) for name in names))
    width, height = map(float, svg.attrib["viewBox"].split()[2:])
    points = centres(svg)
    assert points.min() > 0
    assert points[:, 0].max() < width
    assert points[:, 1].max() < height
    legend = svg.findall(f"{SVG}g[@class='legend']/{SVG}text")
    assert len(legend) == 4
    for text in legend:
        assert float(text.attrib["x"]) + 6.7 * len(text.text or "") < width
        assert float(text.attrib["y"]) < points[:, 1].min()


def test_long_names_are_written_smaller() -> None:
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0, and of which it tells"
    plot = LinePlot(name, [Series(name, STEPS, STEPS), Series("b", STEPS, STEPS)], STEP_AXIS, ERROR)
    svg = ET.fromstring(plot_file(plot, Path("plot.svg")))
    long = [text for text in svg.iter(f"{SVG}text") if text.text == name]
    assert len(long) == 2
    assert all(4 < float(text.attrib["font-size"].removesuffix("px")) < 10 for text in long)


@pytest.mark.parametrize("series", [Series("a", [3], [7]), Series("a", [0, 1], [0, 0])])
def test_a_flat_line_can_be_drawn(series: Series) -> None:
    assert np.isfinite(centres(draw(series))).all()


def test_the_interval_of_a_single_point_is_drawn() -> None:
    svg = draw(Series("a", [3], [7], [6], [9]))
    bar = next(path for path in svg.iterfind(f"{SVG}path") if "color" in path.attrib)
    heights = tick_heights(svg)
    assert vertices(bar)[:, 1] == pytest.approx([heights["6"], heights["9"]])
    assert centres(svg)[:, 1] == pytest.approx([heights["7"]])


@settings(max_examples=5)
@given(st.floats(-1e5, 1e5), st.floats(1e-3, 1e5), st.sampled_from([Scale.LINEAR, Scale.WHOLE]))
def test_linear_axes_have_a_few_ticks(low: float, width: float, scale: Scale) -> None:
    svg = draw(Series("a", [0, 1], [low, low + width]), y_axis=Axis("error", scale))
    labels = ticks(svg, "y-axis")
    if scale is Scale.WHOLE:
        assert all(re.fullmatch(r"−?\d+", label) for label in labels)
        assert len(labels) <= 8
    elif width > abs(low) * 1e-4:
        assert 3 <= len(set(labels)) == len(labels) <= 9


@settings(max_examples=5)
@given(st.floats(-12, 12), st.floats(0, 20))
def test_logarithmic_axes_have_a_few_ticks(exponent: float, decades: float) -> None:
    svg = draw(Series("a", [0, 1], [10**exponent, 10 ** (exponent + decades)]), y_axis=LOG_ERROR)
    heights = list(tick_heights(svg).values())
    assert 2 <= len(heights) <= 11
    assert heights == sorted(heights, reverse=True)


def test_ticks_are_round_numbers() -> None:
    def shown(values: list[float], scale: Scale) -> list[str]:
        return ticks(draw(Series("a", [0, 1], values), y_axis=Axis("error", scale)), "y-axis")

    assert shown([0, 1], Scale.LINEAR) == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert shown([0, 49], Scale.WHOLE) == ["0", "10", "20", "30", "40", "50"]
    assert shown([0, 2], Scale.WHOLE) == ["0", "1", "2"]
    assert shown([1, 20], Scale.LOG) == ["1", "2", "5", "10", "20"]
    assert shown([2e-3, 10], Scale.LOG) == ["0.01", "0.1", "1", "10"]


def test_a_page_is_asked_for_its_colours() -> None:
    svg = page_svg(plot_of(*(Series(str(index), STEPS, [index] * 5) for index in range(6))))
    for index, colour in enumerate(COLOURS, start=1):
        assert f"color: var(--series-{index}, {colour})" in svg
    assert INK not in svg  # text and axes are currentColor
    assert not re.search(r"\bid=|<style|<defs|xlink|DejaVu|<image", svg)


def test_the_dark_of_pages_and_files_is_one() -> None:
    css = (Path(bitbrush.__file__).parent / "bench" / "pages" / "templates" / "page.css").read_text(encoding="utf-8")
    on_screen, _ = css.split("@media print")
    light, dark = (re.findall(r"--(?:series-\d|ink|card): (#\w+)", part) for part in on_screen.split("@media")[:2])
    assert light == [PAPER, INK, *COLOURS]
    assert dark == [DARK_PAPER, DARK_INK, *DARK]


def test_files_are_what_their_suffix_says_and_the_same_every_time() -> None:
    plot = plot_of(*(Series(name, STEPS, STEPS) for name in NASTY[:3]))
    files = {suffix: plot_file(plot, Path(f"plot{suffix}")) for suffix in (".svg", ".png", ".PDF")}
    assert files == {suffix: plot_file(plot, Path(f"other{suffix}")) for suffix in files}
    assert files[".PDF"].startswith(b"%PDF-")
    with Image.open(io.BytesIO(files[".png"])) as image:
        assert image.format == "PNG"
        assert image.size[0] > 800
    svg = ET.fromstring(files[".svg"])
    assert svg.tag == f"{SVG}svg"
    assert [element.text for element in svg.iter(f"{SVG}text")].count("A < B & C") == 1  # titled
    assert "prefers-color-scheme:dark" in (svg[0].text or "")
    assert not any(re.search(rb"20\d\d-\d\d|Matplotlib|CreationDate", content) for content in files.values())
    for name in ("plot.jpg", "plot", "plot.svg.txt"):
        with pytest.raises(ValueError, match=rf"plot {re.escape(name)} has no known format"):
            plot_file(plot, Path(name))


def test_a_file_is_small() -> None:
    steps = list(range(51))
    series = [Series(f"recipe {index}", steps, steps, steps, steps) for index in range(6)]
    assert len(plot_file(plot_of(*series), Path("plot.svg"))) < 60_000


def test_settings_of_the_host_do_not_matter_and_stay() -> None:
    plot = plot_of(Series("a", STEPS, STEPS), Series("b", STEPS, STEPS))
    expected = page_svg(plot)
    with mpl.rc_context({"font.size": 30, "axes.prop_cycle": mpl.cycler(color=["red"])}):
        before = dict(mpl.rcParams)
        assert page_svg(plot) == expected
        assert dict(mpl.rcParams) == before


def test_drawing_leaves_pyplot_alone() -> None:
    code = (
        "import sys\n"
        "from bitbrush.bench.pages.plot_files import page_svg\n"
        "from bitbrush.bench.pages.plots import STEP_AXIS, Axis, LinePlot, Series\n"
        "page_svg(LinePlot('title', [Series('a', [0, 1], [0, 1])], STEP_AXIS, Axis('error')))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["x", "y", "low", "high"])
def test_values_that_are_not_finite_are_refused(field: str, value: float) -> None:
    fields = {name: [1.0, 2.0, 3.0] for name in ("x", "y", "low", "high")}
    fields[field][1] = value
    with pytest.raises(ValueError, match=rf"'progressive': {field}\[1\] is {value}"):
        Series("progressive", **fields)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="2 x but 1 y"):
        Series("a", [1, 2], [1])
    with pytest.raises(ValueError, match="no points"):
        Series("a", [], [])
    with pytest.raises(ValueError, match="one side of its band"):
        Series("a", [1], [1], low=[0])
    with pytest.raises(ValueError, match="0 series"):
        draw()
    with pytest.raises(ValueError, match="7 series"):
        draw(*[Series("a", STEPS, STEPS)] * 7)
    for axes in ({"y_axis": LOG_ERROR}, {"x_axis": LOG_ERROR}):
        with pytest.raises(ValueError, match="logarithmic axis cannot show 0"):
            draw(Series("a", STEPS, STEPS), **axes)
