"""A row of the table of features: what users do to a pipeline, and what comes of it on each runtime."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

RUNTIMES = ("reference", "onednn", "cuda")
INTEGERS = ("onednn", "cuda")
EMULATED = ("sd",)
"""Models whose calls by Triton's interpreter take seconds; others take minutes."""

Use = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Row:
    """One feature.

    Attributes:
        name: Its name in the table.
        use: Uses it on a pipeline, and returns latents or images.
        model: Name of a model in `models.py`.
        without: What ``use`` is compared with: the same call without the feature.
        same: Largest relative distance from ``without``, 0 for the same bits. None: the feature changes images, and the
            error against full precision with the feature is at most ``tolerance`` times that without.
        refused: Beginning of the message by runtime, where the feature is refused.
        tolerance: See ``same``.
        emulated: Whether the runtime ``cuda`` is tried by Triton's interpreter.
        slow: Whether the row is left to the slow tests on all runtimes.
    """

    name: str
    use: Use
    model: str
    without: Use
    same: float | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    tolerance: float = 2.0
    emulated: bool = True
    slow: bool = False

    def outcome(self, runtime: str) -> str:
        """Returns the cell of the table."""
        if runtime == "cuda" and not (self.emulated and self.model in EMULATED):
            return "not tested"
        return "refused" if runtime in self.refused else "yes"


class Section:
    """Rows under one heading, declared by decorated functions.

    Attributes:
        title: The heading.
        note: What holds for all rows, in one or two sentences.
    """

    def __init__(self, title: str, note: str) -> None:
        self.title, self.note = title, note
        self.rows: list[Row] = []

    def row(self, name: str, model: str = "sd", **options: Any) -> Callable[[Use], Use]:
        """Declares a row; the decorated function uses the feature."""

        def declare(use: Use) -> Use:
            self.rows.append(Row(name, use, model, **{"without": plain, **options}))
            return use

        return declare


def plain(pipe: Any) -> Tensor:
    """Calls the pipeline without any feature."""
    from tests.features.models import call

    return call(pipe)
