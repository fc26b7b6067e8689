"""Plots: well-formed SVG, points where they belong, ticks at nice numbers, and what is refused."""

import math
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbrush.bench.plot_scales import Axis, Scale, round_outward, ticks
from bitbrush.bench.plots import STEP_AXIS, Series, line_plot

SVG = "{http://www.w3.org/2000/svg}"
STEPS = [0, 1, 2, 3, 4]
ERROR = Axis("error")


def draw(*series: Series, x_axis: Axis = STEP_AXIS, y_axis: Axis = ERROR) -> ET.Element:
    return ET.fromstring(line_plot(series, title="A < B & C", x_axis=x_axis, y_axis=y_axis))


def texts(svg: ET.Element, group: str) -> list[str]:
    return [element.text or "" for element in svg.iterfind(f"{SVG}g[@class='{group}']/{SVG}text")]


def centres(svg: ET.Element) -> np.ndarray:
    return np.array([[float(circle.attrib["cx"]), float(circle.attrib["cy"])] for circle in svg.iter(f"{SVG}circle")])


def tick_heights(svg: ET.Element) -> dict[str, float]:
    """Tick label -> y of its grid line."""
    labels = svg.iterfind(f"{SVG}g[@class='y-ticks']/{SVG}text")
    return {label.text or "": float(label.attrib["y"]) - 4.5 for label in labels}


def test_points_lie_on_their_grid_lines() -> None:
    svg = draw(Series("a", STEPS, [0, 10, 20, 30, 40]))
    heights = tick_heights(svg)
    points = centres(svg)
    assert points[:, 1] == pytest.approx([heights[label] for label in ("0", "10", "20", "30", "40")])
    assert np.diff(points[:, 0]) == pytest.approx([points[1, 0] - points[0, 0]] * 4, abs=0.02)
    assert points[0, 1] > points[-1, 1]  # up is more


def test_points_lie_on_their_grid_lines_in_powers_of_ten() -> None:
    svg = draw(Series("a", STEPS, [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]), y_axis=Axis("error", Scale.LOG))
    heights = tick_heights(svg)
    assert list(heights) == ["10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²", "10⁻¹"]
    assert centres(svg)[:, 1] == pytest.approx(list(heights.values()))


def test_line_and_band_go_through_the_values() -> None:
    svg = draw(Series("a", STEPS, [1, 2, 3, 4, 5], low=[0] * 5, high=[6] * 5))
    line, band = svg.find(f".//{SVG}polyline"), svg.find(f".//{SVG}polygon")
    assert line is not None
    assert band is not None
    assert [list(map(float, p.split(","))) for p in line.attrib["points"].split()] == centres(svg).tolist()
    edge = [tuple(map(float, point.split(","))) for point in band.attrib["points"].split()]
    heights = tick_heights(svg)
    assert {y for _, y in edge[:5]} == {heights["6"]}
    assert {y for _, y in edge[5:]} == {heights["0"]}
    assert [x for x, _ in edge[5:]] == [x for x, _ in edge[:5]][::-1]


def test_says_what_it_shows() -> None:
    svg = draw(Series('one"shot', STEPS, [1] * 5), Series("<b>", np.arange(5), np.ones(5)), y_axis=Axis("MSE (dB)"))
    assert svg.attrib["role"] == "img"
    assert "A < B & C" in svg.attrib["aria-label"]
    assert texts(svg, "legend") == ['one"shot', "<b>"]
    assert texts(svg, "x-ticks") == ["0", "1", "2", "3", "4"]
    labels = [element.text for element in svg.iter(f"{SVG}text")]
    assert {"A < B & C", "MSE (dB)", "denoising step (0 = noisiest)"} <= set(labels)
    tooltips = [title.text or "" for title in svg.iter(f"{SVG}title")]
    assert len(tooltips) == 10
    assert tooltips[6] == "<b>\ndenoising step (0 = noisiest): 1\nMSE (dB): 1"


def test_series_differ_in_colour_and_dashes() -> None:
    svg = draw(*(Series(str(index), STEPS, [index] * 5) for index in range(6)))
    lines = list(svg.iter(f"{SVG}polyline"))
    assert len({line.attrib["stroke-dasharray"] for line in lines}) == 6
    assert len({group.attrib["style"] for group in svg.iterfind(f"{SVG}g[@class='series']")}) == 6


def test_everything_stays_inside() -> None:
    names = ["a rather long name of a series", "another one that is long", "short", "a third one, longer than most"]
    svg = draw(*(Series(name, STEPS, [-1e-7, 0, 2e-7, 3, 1]) for name in names))
    width, height = map(float, svg.attrib["viewBox"].split()[2:])
    points = centres(svg)
    assert points.min() > 0
    assert points[:, 0].max() < width
    assert points[:, 1].max() < height
    for text in svg.iterfind(f"{SVG}g[@class='legend']/{SVG}text"):
        assert float(text.attrib["x"]) + 6.7 * len(text.text or "") < width


@pytest.mark.parametrize("series", [Series("a", [3], [7]), Series("a", [0, 1], [0, 0])])
def test_a_flat_line_can_be_drawn(series: Series) -> None:
    assert np.isfinite(centres(draw(series))).all()


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.sampled_from([Scale.LINEAR, Scale.WHOLE]))
def test_linear_limits_hold_the_values_and_few_ticks(low: float, width: float, scale: Scale) -> None:
    bottom, top = round_outward(low, low + width, scale)
    slack = 1e-6 * (abs(low) + width)
    assert bottom - slack <= low
    assert low + width <= top + slack
    if scale is Scale.WHOLE:
        assert all(value == round(value) for value in ticks(bottom, top, scale))
    elif width > abs(low) * 1e-6:
        assert 3 <= len(ticks(bottom, top, scale)) <= 9


@given(st.floats(-12, 12), st.floats(0, 20))
def test_log_limits_hold_the_values_and_few_ticks(exponent: float, decades: float) -> None:
    low, high = 10**exponent, 10 ** (exponent + decades)
    bottom, top = round_outward(low, high, Scale.LOG)
    assert bottom <= low * (1 + 1e-8)
    assert high <= top * (1 + 1e-8)
    values = ticks(bottom, top, Scale.LOG)
    assert 2 <= len(values) <= 11
    assert values == sorted(values)


def test_ticks_are_round_numbers() -> None:
    assert ticks(0, 1, Scale.LINEAR) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0, 49, Scale.WHOLE) == [0, 10, 20, 30, 40]
    assert ticks(0, 2, Scale.WHOLE) == [0, 1, 2]
    assert ticks(1, 20, Scale.LOG) == [1, 2, 5, 10, 20]
    assert ticks(1e-3, 10, Scale.LOG) == [1e-3, 1e-2, 0.1, 1, 10]


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
    with pytest.raises(ValueError, match="logarithmic axis cannot show 0"):
        draw(Series("a", STEPS, STEPS), y_axis=Axis("error", Scale.LOG))
