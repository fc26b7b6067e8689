"""Plots in files, and as SVG that follows its page into the dark, from what matplotlib writes.

Text and lines have the page's text colour, `currentColor`. A series has the CSS variable `--series-1` to `--series-6`,
or its colour for white paper where the page defines none. Every point tells its values on hover. Nothing has an id or
a style sheet, as several plots share a page.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

from bitbrush.bench.pages.number_format import format_number
from bitbrush.bench.pages.plots import (
    COLOURS,
    FONT_SIZE,
    INK,
    LinePlot,
    Series,
    rendered,
)

FORMATS = (".svg", ".png", ".pdf")
DARK = ("#6cacf7", "#f79a4b", "#3fc79e", "#ec83c2", "#d9b83f", "#a5afbd")
PAPER, DARK_PAPER, DARK_INK = "#ffffff", "#181c23", "#e8ebf0"

_CLASSES = ("x-axis", "y-axis", "legend")
_ATTRIBUTES = ("d", "x", "y", "transform")
_STYLES = (
    *("fill", "fill-opacity", "stroke", "stroke-opacity", "stroke-width", "stroke-dasharray", "stroke-linecap"),
    *("font-size", "font-weight", "text-anchor", "opacity"),
)


def page_svg(plot: LinePlot) -> str:
    """Returns an `<svg>` element without title for a page, which has the title as text."""
    return _text(_converted(plot, titled=False))


def require_format(path: Path) -> None:
    """Checks that the suffix of `path` is one of `FORMATS`.

    Raises:
        ValueError: It is not.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"plot {path} has no known format; let its name end in {', '.join(FORMATS)}")


def plot_file(plot: LinePlot, path: Path) -> bytes:
    """Returns the plot with its title, in the format that the suffix of `path` names.

    Raises:
        ValueError: The suffix is none of `FORMATS`.
    """
    require_format(path)
    suffix = path.suffix.lower()
    if suffix != ".svg":
        return rendered(plot, suffix.removeprefix("."), titled=True)
    root = _converted(plot, titled=True)
    root.insert(0, _own_style())
    return f"{_text(root)}\n".encode()


def _text(root: ET.Element) -> str:
    text: str = ET.tostring(root, encoding="unicode")
    return text


def _own_style() -> ET.Element:
    """Returns the style of white paper, or dark if the reader prefers it."""
    variables = "".join(f"--series-{index}:{colour};" for index, colour in enumerate(DARK, start=1))
    style = ET.Element("style")
    style.text = (
        f"svg{{background:{PAPER};color:{INK}}}"
        f"@media(prefers-color-scheme:dark){{svg{{background:{DARK_PAPER};color:{DARK_INK};{variables}}}}}"
    )
    return style


def _converted(plot: LinePlot, *, titled: bool) -> ET.Element:
    drawn = ET.fromstring(rendered(plot, "svg", titled=titled))
    width, height = drawn.attrib["viewBox"].split()[2:]
    root = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "class": "plot",
            "viewBox": f"0 0 {width} {height}",
            "width": width,
            "height": height,
            "role": "img",
            "aria-label": _label(plot),
            "font-family": "system-ui, sans-serif",
            "font-size": f"{FONT_SIZE}",
            "fill": "currentColor",
            "stroke-linejoin": "round",
        },
    )
    root.extend(_children(drawn, plot))
    return root


def _label(plot: LinePlot) -> str:
    names = ", ".join(series.name for series in plot.series)
    return f"{plot.title}. Lines: {names}. Across: {plot.x_axis.label}. Up: {plot.y_axis.label}."


def _children(element: ET.Element, plot: LinePlot) -> list[ET.Element]:
    """Returns the drawings within an element of matplotlib's, without definitions and superfluous groups."""
    return [drawing for child in element for drawing in _drawn(child, plot)]


def _drawn(element: ET.Element, plot: LinePlot) -> Iterator[ET.Element]:
    tag, name = element.tag.rpartition("}")[2], element.get("id", "")
    if tag == "g" and name.startswith("series-"):
        yield _series_group(element, plot, int(name.removeprefix("series-")))
    elif tag == "g":
        inner = _children(element, plot)
        if inner and name in _CLASSES:
            group = ET.Element("g", {"class": name})
            group.extend(inner)
            yield group
        else:
            yield from inner
    elif tag in {"path", "text"}:
        attributes = _attributes(element)
        if tag == "text" or attributes.get("fill") != "none" or "stroke" in attributes:
            drawing = ET.Element(tag, attributes)
            drawing.text = element.text
            yield drawing


def _series_group(element: ET.Element, plot: LinePlot, index: int) -> ET.Element:
    """Returns the line, and a circle for every marker; its title shows the values."""
    series = plot.series[index]
    group = ET.Element("g", {"class": "series", **_colour(COLOURS[index])})
    group.extend(_children(element, plot))
    for path in group:  # whose colour is the group's
        path.attrib.pop("color", None)
        path.attrib.pop("style", None)
    points = ET.SubElement(group, "g", {"stroke": "transparent", "stroke-width": "9"})  # for the pointer to hit
    for i, mark in enumerate(mark for mark in element.iter() if mark.tag.endswith("}use")):
        centre = {"cx": _rounded(mark.attrib["x"]), "cy": _rounded(mark.attrib["y"]), "r": f"{series.radius:g}"}
        ET.SubElement(ET.SubElement(points, "circle", centre), "title").text = _values(series, i)
    return group


def _values(series: Series, i: int) -> str:
    band = ""
    if series.low is not None and series.high is not None:
        band = f" ({format_number(series.low[i], digits=4)} to {format_number(series.high[i], digits=4)})"
    return f"{series.name}\n{format_number(series.x[i])}: {format_number(series.y[i], digits=4)}{band}"


def _attributes(element: ET.Element) -> dict[str, str]:
    """Returns geometry to a hundredth of a pixel, and style as attributes, in the page's colours."""
    attributes = {key: _rounded(element.attrib[key]) for key in _ATTRIBUTES if key in element.attrib}
    if attributes.get("transform", "").startswith("rotate(-0"):
        del attributes["transform"]
    style = dict(part.split(": ", 1) for part in element.get("style", "").split("; ") if part)
    for key in _STYLES:
        value = style.get(key)
        if value in (None, f"{FONT_SIZE}px", "start"):
            continue
        if value.startswith("#"):
            attributes |= _colour(value)
            value = "currentColor"
        attributes[key] = value
    if element.tag.endswith("}text") and attributes.get("fill") == "currentColor":
        del attributes["fill"]
    return attributes


def _colour(value: str) -> dict[str, str]:
    """Returns the colour also as attribute, for programs without CSS variables; nothing for ink, the page's colour."""
    if value == INK:
        return {}
    return {"color": value, "style": f"color: var(--series-{COLOURS.index(value) + 1}, {value})"}


def _rounded(text: str) -> str:
    numbers = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), text)
    return re.sub(r"\s+", " ", numbers).strip()
