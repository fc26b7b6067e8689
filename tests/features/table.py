"""The table of features: all sections, and the page that shows them."""

from collections.abc import Iterator
from pathlib import Path

from tests.features.adapters import ADAPTERS
from tests.features.caches import CACHES
from tests.features.calls import CALLS
from tests.features.loras import LORAS
from tests.features.movement import MOVEMENT
from tests.features.row import RUNTIMES, Row, Section
from tests.features.sharing import SHARING

SECTIONS = (LORAS, ADAPTERS, CACHES, CALLS, MOVEMENT, SHARING)
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "features.md"
INTRODUCTION = """# What works on a loaded pipeline

<!-- Made by `make features` from tests/features; do not edit. -->

A loaded artifact is a diffusers pipeline. Each row is a test: `pytest tests/features`, with `-m slow` for `cuda`.
It uses the feature on tiny pipelines of random weights, on each runtime and in full precision.

- **yes**: the relative error of the latents, against full precision with the same feature, is at most twice that
  without the feature (with `eta` four times), and at most half of what the feature changes.
  [Movement](#movement), and rows named *the images from before*, change no bit; slicing attention changes rounding.
- **refused**: an error names the remedy. Notes below the tables quote its beginning.
- **not tested**: `cuda` is tried by Triton's interpreter, where that takes seconds, on a smaller U-Net. It is compared
  with `reference`, whose latents it gives up to a thousandth.

The artifacts have 8-bit weights and ranges that clip nothing: a feature that is ignored or computed twice shows.
Ranges of your artifact were calibrated without the feature: `bitbrush.watch(pipe)` counts what they clip
([how](changed-pipelines.md#clipped-values)).
"""


def rows() -> list[Row]:
    """Lists the rows of all sections."""
    return [row for section in SECTIONS for row in section.rows]


def page() -> str:
    """Returns the page, in Markdown."""
    return "\n".join([INTRODUCTION, *("\n".join(_section(section)) for section in SECTIONS)])


def _section(section: Section) -> Iterator[str]:
    notes: dict[str, int] = {}
    yield f"## {section.title}\n\n{section.note}\n"
    yield f"| feature | {' | '.join(f'`{runtime}`' for runtime in RUNTIMES)} |"
    yield "|---" * (1 + len(RUNTIMES)) + "|"
    for row in section.rows:
        yield f"| {row.name} | {' | '.join(_cell(row, runtime, notes) for runtime in RUNTIMES)} |"
    yield ""
    for message, number in notes.items():
        yield f'{number}. "{message} …"'
    if notes:
        yield ""


def _cell(row: Row, runtime: str, notes: dict[str, int]) -> str:
    outcome = row.outcome(runtime)
    if outcome != "refused":
        return outcome
    return f"refused ({notes.setdefault(row.refused[runtime], len(notes) + 1)})"
