"""The templates of this room."""

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bitbrush.bench.pages.number_format import format_interval, format_number
from bitbrush.bench.pages.plot_files import page_svg
from bitbrush.bench.pages.plots import LinePlot


@cache
def environment() -> Environment:
    """Templates of `bench/pages/templates`; every value is escaped, and a name that does not exist is an error."""
    made = Environment(
        loader=PackageLoader("bitbrush.bench.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": format_number, "interval": format_interval, "svg": _svg}
    return made


def _svg(plot: LinePlot) -> Markup:
    return Markup(page_svg(plot))  # whose texts are escaped as it is made
