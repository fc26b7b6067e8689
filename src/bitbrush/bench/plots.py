"""Line plots as inline SVG, without a plotting library.

Colours come from the CSS variables `--series-1` to `--series-6` where the page defines them, text from `currentColor`,
so a plot follows the page into the dark; on its own it has colours that are fit for white.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bitbrush.bench.number_format import format_number
from bitbrush.bench.plot_scales import Axis, Scale, fraction, limits, round_outward, ticks
from bitbrush.bench.templating import environment

STEP_AXIS = Axis("denoising step (0 = noisiest)", Scale.WHOLE)

# The Okabe-Ito colours, which the colour-blind tell apart, darkened for thin lines on white; dashes serve in gray.
_COLOURS = ("#1b6ac9", "#c75a00", "#0b8063", "#b03a83", "#8a6d00", "#5b6472")
_DASHES = ("", "7 4", "2 3", "10 3 2 3", "1 5", "14 5")

_WIDTH, _PLOT_HEIGHT, _RIGHT, _BOTTOM = 440.0, 200.0, 14.0, 48.0  # narrow, so that its text stays legible on a phone
_CHARACTER, _LINE = 6.7, 19.0  # px, of 13 px text, on the wide side


@dataclass(frozen=True, slots=True)
class Series:
    """A line through the points `(x, y)`, with a shaded band from `low` to `high` where these are given.

    Raises ValueError where the lengths differ, there are no points, a value is not finite, or only one side of the band
    is given.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise ValueError(f"series {self.name!r} has one side of its band only; give low and high, or neither")
        if not len(self.x):
            raise ValueError(f"series {self.name!r} has no points; leave it out of the plot")
        for field in ("x", "y", "low", "high"):
            values = getattr(self, field)
            if values is None:
                continue
            if len(values) != len(self.x):
                raise ValueError(f"series {self.name!r} has {len(self.x)} x but {len(values)} {field} values")
            for index, value in enumerate(values):
                if not math.isfinite(value):
                    raise ValueError(
                        f"series {self.name!r}: {field}[{index}] is {value}; a plot shows finite values, so leave the "
                        "point out or find out what broke it"
                    )

    def y_values(self) -> list[float]:
        """Everything the y axis has to cover."""
        return [value for values in (self.y, self.low, self.high) if values is not None for value in values]


@dataclass(frozen=True, slots=True)
class _Frame:
    """The rectangle of the plot in SVG units, and the values at its edges."""

    left: float
    top: float
    x_limits: tuple[float, float]
    y_limits: tuple[float, float]
    x_axis: Axis
    y_axis: Axis

    @property
    def right(self) -> float:
        return _WIDTH - _RIGHT

    @property
    def bottom(self) -> float:
        return self.top + _PLOT_HEIGHT

    def x(self, value: float) -> float:
        return round(self.left + fraction(value, *self.x_limits, self.x_axis.scale) * (self.right - self.left), 2)

    def y(self, value: float) -> float:
        return round(self.bottom - fraction(value, *self.y_limits, self.y_axis.scale) * _PLOT_HEIGHT, 2)

    def path(self, x: Sequence[float], y: Sequence[float]) -> str:
        return " ".join(f"{self.x(a)},{self.y(b)}" for a, b in zip(x, y, strict=True))


def line_plot(series: Sequence[Series], *, title: str, x_axis: Axis, y_axis: Axis) -> str:
    """An `<svg>` element: the lines with their bands, a legend, ticks at nice numbers, each point's values on hover.

    The x axis ends where the data ends, the y axis at the next tick. Up to six series are told apart by colour and by
    dashes. Raises ValueError for none or more, and for values that are not positive on a logarithmic axis.
    """
    if not 1 <= len(series) <= len(_COLOURS):
        raise ValueError(f"plot {title!r} has {len(series)} series; it shows 1 to {len(_COLOURS)}: split it")
    rows = _legend_rows([one.name for one in series])
    frame = _frame(series, x_axis, y_axis, top=38 + _LINE * len(rows))
    return (
        environment()
        .get_template("line_plot.svg.j2")
        .render(
            title=title,
            series=series,
            frame=frame,
            styles=[
                {"colour": f"var(--series-{index}, {colour})", "dash": dash}
                for index, (colour, dash) in enumerate(zip(_COLOURS, _DASHES, strict=True), start=1)
            ],
            legend=[(index, x, 36 + _LINE * row) for row, entries in enumerate(rows) for index, x in entries],
            x_ticks=_labelled_ticks(frame.x_limits, x_axis.scale),
            y_ticks=_labelled_ticks(frame.y_limits, y_axis.scale),
            width=_WIDTH,
            height=frame.bottom + _BOTTOM,
        )
    )


def _frame(series: Sequence[Series], x_axis: Axis, y_axis: Axis, *, top: float) -> _Frame:
    x_limits = limits([value for one in series for value in one.x])
    if x_axis.scale is Scale.LOG:
        x_limits = round_outward(*x_limits, x_axis.scale)
    y_limits = round_outward(*limits([value for one in series for value in one.y_values()]), y_axis.scale)
    widest = max(len(label) for _, label in _labelled_ticks(y_limits, y_axis.scale))
    return _Frame(34 + _CHARACTER * widest, top, x_limits, y_limits, x_axis, y_axis)


def _labelled_ticks(axis_limits: tuple[float, float], scale: Scale) -> list[tuple[float, str]]:
    """Every tick with its text. A logarithmic axis that reaches 10^-3 is written in powers of ten throughout."""
    values = ticks(*axis_limits, scale)
    powers = scale is Scale.LOG and values[0] <= 1e-3
    return [(value, format_number(value, small=math.inf) if powers else format_number(value)) for value in values]


def _legend_rows(names: Sequence[str]) -> list[list[tuple[int, float]]]:
    """Per row of the legend, (index of the series, x of its entry): as many in a row as fit."""
    rows: list[list[tuple[int, float]]] = [[]]
    x = 10.0
    for index, name in enumerate(names):
        width = 36 + _CHARACTER * len(name) + 14
        if rows[-1] and x + width > _WIDTH:
            rows.append([])
            x = 10.0
        rows[-1].append((index, round(x, 2)))
        x += width
    return rows
