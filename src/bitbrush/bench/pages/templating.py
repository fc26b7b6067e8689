"""The page template's environment."""

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bitbrush.bench.pages.images import image_uri
from bitbrush.bench.pages.plot_files import page_svg
from bitbrush.bench.pages.plots import LinePlot


@cache
def environment() -> Environment:
    """Returns the templates of `bench/pages/templates`; values are escaped, and an unknown name is an error."""
    templates = Environment(
        loader=PackageLoader("bitbrush.bench.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"uri": image_uri, "svg": _svg}
    return templates


def _svg(plot: LinePlot) -> Markup:
    return Markup(page_svg(plot))  # whose texts are escaped as it is made
