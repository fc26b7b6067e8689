"""Line plots by matplotlib: what a plot shows, and how it is drawn.

The object-oriented interface alone is used, under matplotlib's defaults: neither pyplot nor a user's style matters.
"""

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.axis import Axis as AxisArtist
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from bitbrush.bench.pages.number_format import format_number

INK = "#171b23"
FONT_SIZE = 13
COLOURS = ("#1b6ac9", "#c75a00", "#0b8063", "#b03a83", "#8a6d00", "#5b6472")
"""The Okabe-Ito colours, which the colour-blind tell apart, darkened for thin lines on white; dashes serve in gray."""

MOST_SERIES = len(COLOURS)

_DASHES = ("solid", (0, (3.5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (0.5, 2.5)), (0, (7, 2.5)))
_WIDTH, _HEIGHT, _LINE = 440, 270, 22  # points, which are pixels in SVG; narrow, to stay legible on a phone
_SETTINGS = {
    "font.size": FONT_SIZE,
    "text.parse_math": False,  # names are text
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.14,
    "path.simplify": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "bitbrush",
}


class Scale(Enum):
    """Layout of values along an axis."""

    LINEAR = auto()
    LOG = auto()
    WHOLE = auto()
    """Linear, with ticks at whole numbers only: steps, bits."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Label of an axis, unit included, and its scale: `latent MSE`, `size (MiB)`."""

    label: str
    scale: Scale = Scale.LINEAR


STEP_AXIS = Axis("denoising step (0 = noisiest)", Scale.WHOLE)


@dataclass(frozen=True, slots=True)
class Series:
    """Line through the points `(x, y)`, with a shaded band from `low` to `high` if both are set.

    Raises:
        ValueError: Lengths differ, there are no points, a value is not finite, or the band has one side only.
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
        for field, values in self._columns():
            if len(values) != len(self.x):
                raise ValueError(f"series {self.name!r} has {len(self.x)} x but {len(values)} {field} values")
            for index, value in enumerate(values):
                if not math.isfinite(value):
                    raise ValueError(
                        f"series {self.name!r}: {field}[{index}] is {value}; a plot shows finite values, so leave the "
                        "point out or find out what broke it"
                    )

    def _columns(self) -> Iterator[tuple[str, Sequence[float]]]:
        columns = {"x": self.x, "y": self.y, "low": self.low, "high": self.high}
        return ((field, values) for field, values in columns.items() if values is not None)

    @property
    def radius(self) -> float:
        """Radius of the points; a single point is larger, as it has no line."""
        return 4.0 if len(self.x) == 1 else 1.8

    def y_values(self) -> list[float]:
        """Returns everything the y axis has to cover."""
        return [value for field, values in self._columns() if field != "x" for value in values]


@dataclass(frozen=True, slots=True)
class LinePlot:
    """Title, up to six lines with their axes, and a sentence on what to see in them.

    Pages have the title and the caption as text beside the plot. A file has the title above the lines.

    Raises:
        ValueError: There are no series or more than six, or a logarithmic axis has a value that is not positive.
    """

    title: str
    series: Sequence[Series]
    x_axis: Axis
    y_axis: Axis
    caption: str = ""

    def __post_init__(self) -> None:
        count = len(self.series)
        if not 1 <= count <= MOST_SERIES:
            raise ValueError(f"plot {self.title!r} has {count} series; it shows 1 to {MOST_SERIES}: split it")
        for axis, values in ((self.x_axis, self.x_values()), (self.y_axis, self.y_values())):
            if axis.scale is Scale.LOG and min(values) <= 0:
                raise ValueError(
                    f"a logarithmic axis cannot show {min(values)}; use a linear one or leave the value out"
                )

    def x_values(self) -> list[float]:
        """Returns everything the x axis has to cover."""
        return [value for series in self.series for value in series.x]

    def y_values(self) -> list[float]:
        """Returns everything the y axis has to cover."""
        return [value for series in self.series for value in series.y_values()]


def rendered(plot: LinePlot, kind: str, *, titled: bool) -> bytes:
    """Renders the plot by matplotlib; the same bytes every time, without date and version."""
    metadata = {
        "svg": dict.fromkeys(("Date", "Creator", "Format", "Type")),
        "png": {"Software": None},
        "pdf": dict.fromkeys(("CreationDate", "Creator", "Producer")),
    }[kind]
    buffer = io.BytesIO()
    svg = kind == "svg"  # whose paper and whose letters are the reader's
    with matplotlib.style.context(["default", _SETTINGS]), warnings.catch_warnings():
        if svg:
            warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure = _figure(plot, titled=titled)
        figure.savefig(buffer, format=kind, dpi="figure" if svg else 200, transparent=svg, metadata=metadata)
    return buffer.getvalue()


def _figure(plot: LinePlot, *, titled: bool) -> Figure:
    figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72), dpi=72)
    axes = figure.subplots()
    for index, series in enumerate(plot.series):
        _draw(axes, series, index)
    for axis, set_scale in ((plot.x_axis, axes.set_xscale), (plot.y_axis, axes.set_yscale)):
        set_scale("log" if axis.scale is Scale.LOG else "linear")
    _set_ticks(axes.xaxis, plot.x_axis, plot.x_values())
    _set_ticks(axes.yaxis, plot.y_axis, plot.y_values())
    axes.set_xlabel(plot.x_axis.label)
    axes.set_title(plot.y_axis.label, loc="left", fontsize="medium")
    axes.xaxis.set_gid("x-axis")
    axes.yaxis.set_gid("y-axis")
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0)
    for side in ("left", "top", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=INK, alpha=0.5)
    _head(figure, plot, titled=titled)
    return figure


def _draw(axes: Axes, series: Series, index: int) -> None:
    colour = COLOURS[index]
    if series.low is not None and series.high is not None:
        if len(series.x) == 1:
            axes.plot([*series.x, *series.x], [*series.low, *series.high], color=colour, linewidth=2)
        else:
            edge = ([*series.x, *reversed(series.x)], [*series.high, *reversed(series.low)])
            axes.fill(*edge, color=colour, alpha=0.16, linewidth=0)
    axes.plot(
        series.x,
        series.y,
        label=series.name,
        gid=f"series-{index}",
        clip_on=False,
        color=colour,
        linestyle=_DASHES[index],
        linewidth=2,
        marker="o",
        markersize=2 * series.radius,
    )


def _set_ticks(artist: AxisArtist, axis: Axis, values: Sequence[float]) -> None:
    """Sets ticks at 1, 2 or 5 times a power of ten; at powers of ten on a logarithmic axis of three or more decades."""
    low, high = min(values), max(values)
    small = 1e-4
    if axis.scale is not Scale.LOG or high < 3 * low:  # too short for several powers
        whole = axis.scale is Scale.WHOLE
        artist.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=whole, min_n_ticks=1))
    else:
        artist.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
        small = math.inf if low <= 1e-3 else small  # an axis that reaches 10^-3 is written in powers of ten throughout
    artist.set_minor_locator(NullLocator())
    artist.set_major_formatter(FuncFormatter(lambda value, _: format_number(value, small=small)))


def _head(figure: Figure, plot: LinePlot, *, titled: bool) -> None:
    """Adds the legend above the lines and the title above that; the figure grows by both."""
    has_legend = any(series.name != plot.y_axis.label for series in plot.series)
    legend = _legend(figure) if has_legend else None
    legend_height = 0 if legend is None else math.ceil(legend.get_window_extent().height)
    title_height = _LINE if titled else 0
    height = _HEIGHT + legend_height + title_height
    figure.set_size_inches(_WIDTH / 72, height / 72)
    if legend is not None:
        legend.set_bbox_to_anchor((0, 0, 1, 1 - title_height / height), figure.transFigure)
    if titled:
        title = figure.text(4 / _WIDTH, 1 - 4 / height, plot.title, va="top", fontweight="bold", in_layout=False)
        _shrink([title], title.get_window_extent().width, _WIDTH - 8)
    figure.set_layout_engine("constrained", rect=(0, 0, 1, _HEIGHT / height))


def _legend(figure: Figure) -> Legend:
    """Adds the legend in as many columns as fit, or in smaller letters if one column is too wide."""
    (axes,) = figure.axes
    lines = [line for line in axes.lines if line.get_gid() is not None]
    for columns in (3, 2, 1):
        legend = figure.legend(
            handles=lines,
            labels=[str(line.get_label()) for line in lines],
            loc="upper left",
            ncols=columns,
            frameon=False,
            borderaxespad=0.2,
            handlelength=2.2,
        )
        legend.set(in_layout=False, gid="legend")
        width = legend.get_window_extent().width
        if width <= _WIDTH:
            return legend
        if columns > 1:
            legend.remove()
    widest = max(text.get_window_extent().width for text in legend.get_texts())
    _shrink(legend.get_texts(), widest, _WIDTH - 8 - (width - widest))
    return legend


def _shrink(texts: Sequence[Text], width: float, limit: float) -> None:
    """Shrinks letters by the factor that makes `width` fit the limit."""
    for text in texts:
        text.set_fontsize(float(text.get_fontsize()) * min(1.0, limit / width))
