"""The page of an experiment: a verdict, images, a plot of quality, tables, and how it was made.

Every experiment fills what it has; one template shows it. All text is escaped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from bitbrush.bench.metrics.interval import Interval
from bitbrush.bench.pages.images import WIDEST
from bitbrush.bench.pages.number_format import format_interval
from bitbrush.bench.pages.plots import LinePlot
from bitbrush.bench.pages.templating import environment


class Tone(StrEnum):
    """Colour of a card or table cell: CSS classes of ``page.css``."""

    PLAIN = ""
    GOOD = "good"
    FAIR = "fair"
    BAD = "bad"
    NEUTRAL = "neutral"


@dataclass(frozen=True, slots=True)
class Tile:
    """One image of a row.

    Attributes:
        name: Model that made it.
        image: uint8 `(H, W, 3)`.
        note: Figures of this image, shown below it.
        warning: Defect, e.g. that the image is black.
    """

    name: str
    image: NDArray[np.uint8]
    note: str = ""
    warning: str = ""

    def __post_init__(self) -> None:
        image = self.image
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"the image of {self.name!r} is {image.dtype} {image.shape}; images are uint8 (H, W, 3)")


@dataclass(frozen=True, slots=True)
class ImageRow:
    """Images of one prompt from the same noise; the first is the reference of the others.

    Attributes:
        prompt: Prompt of all of them.
        note: Prompt set, index, seed.
        tiles: Reference and the images beside it.
        label: Reason for which the row is shown; empty for a row that nobody chose.
    """

    prompt: str
    note: str
    tiles: Sequence[Tile]
    label: str = ""

    def __post_init__(self) -> None:
        names = [tile.name for tile in self.tiles]
        if not names or len(set(names)) < len(names):
            raise ValueError(
                f"prompt {self.prompt!r} has images of {names}; a row has a reference first, and names that differ"
            )


@dataclass(frozen=True, slots=True)
class ImageGroup:
    """Rows of a kind under a heading, e.g. usual pairs or worst pairs; ``about`` says how they were chosen."""

    heading: str
    about: str
    rows: Sequence[ImageRow]


@dataclass(frozen=True, slots=True)
class Gallery:
    """Groups of images that stand beside each other, e.g. those of one prompt set, which ``about`` explains.

    A folded gallery shows its heading alone until it is opened.
    """

    heading: str
    about: str
    groups: Sequence[ImageGroup]
    folded: bool = False

    @property
    def tiles(self) -> int:
        """Images of the longest row."""
        return max((len(row.tiles) for group in self.groups for row in group.rows), default=1)

    @property
    def is_small(self) -> bool:
        """Whether single pixels are to be seen."""
        images = [tile.image for group in self.groups for row in group.rows for tile in row.tiles]
        return all(max(image.shape[:2]) <= WIDEST for image in images)


@dataclass(frozen=True, slots=True)
class Card:
    """Summary of one candidate.

    Attributes:
        name: Candidate.
        figure: Verdict or size, in large letters.
        lines: Reasons and facts.
        tone: Colour of the card.
        share: Size relative to the reference's, shown as a bar; None for no bar.
    """

    name: str
    figure: str
    lines: Sequence[str] = ()
    tone: Tone = Tone.PLAIN
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """Table cell: a figure, its interval or other lines below, and a colour of ``strength`` percent."""

    figure: str
    note: str = ""
    tone: Tone = Tone.PLAIN
    strength: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """Table row; a cell that does not exist is None."""

    name: str
    cells: Sequence[Cell | None]


@dataclass(frozen=True, slots=True)
class Table:
    """Table with a heading for each cell of a row; ``corner`` heads the rows' names.

    Raises:
        ValueError: A row has more or fewer cells than there are columns.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Row]
    about: str = ""
    corner: str = ""
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(
                    f"table {self.name!r}: row {row.name!r} has {len(row.cells)} cells, but there are "
                    f"{len(self.columns)} columns"
                )


@dataclass(frozen=True, slots=True)
class TableSection:
    """Tables under a heading; notes follow them. A folded section shows its heading alone until it is opened."""

    heading: str
    about: str
    tables: Sequence[Table]
    notes: Sequence[str] = ()
    folded: bool = False


@dataclass(frozen=True, slots=True)
class PlotSection:
    """Plots under a heading, and cards beside them."""

    heading: str
    plots: Sequence[LinePlot]
    cards: Sequence[Card] = ()
    rule: str = ""
    """How the cards' verdicts are found, folded."""


@dataclass(frozen=True, slots=True)
class Page:
    """Everything a page shows, in the order in which it does.

    Attributes:
        title: What was measured.
        verdict: Result in one sentence.
        facts: How it was made, by name.
        command: Command that makes the page again.
        about: Paragraphs below the verdict.
        warnings: Paragraphs in the colour of warnings, e.g. that the run is unfinished.
        images_about: How the images are made, above all galleries.
        galleries: Images.
        quality: Quality against size, bits or steps.
        tables: All figures.
        plots: Further plots.
    """

    title: str
    verdict: str
    facts: Mapping[str, str]
    command: str
    about: Sequence[str] = ()
    warnings: Sequence[str] = ()
    images_about: str = ""
    galleries: Sequence[Gallery] = ()
    quality: PlotSection | None = None
    tables: Sequence[TableSection] = ()
    plots: PlotSection | None = None


def render_page(page: Page) -> str:
    """Renders the page as one HTML file that needs nothing from outside."""
    return environment().get_template("page.html.j2").render(page=page)


def interval_cell(interval: Interval) -> Cell:
    """Builds a cell of a mean with its interval below."""
    return Cell(*format_interval(interval))
