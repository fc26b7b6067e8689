"""Declarations of recipe keys, the single source for everything derived from them.

The fields of :class:`~bitbrush.methods.recipe.Recipe` each have a :class:`Key`. It determines the command line's
option, the entry in recipe files, the manifest and the table in the docs. It also decides whether ``recalibrate`` may
change the key, and whether the recipes of an ablation share rounded weights.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from typing import Any

from bitbrush.timeline.plan import is_prompt_text

METADATA = "key"
"""Name of the :class:`Key` in a field's metadata."""


class Decides(Enum):
    """Results that a key affects; they determine which earlier results stay valid when it changes."""

    NETWORK = auto()
    """The network before quantization: its layers or their weights before rounding."""
    WEIGHTS = auto()
    """The integer weights."""
    SENSITIVITIES = auto()
    """Activation parameters, and weight bits if these are allocated by measured sensitivities."""
    BRANCHES = auto()
    """Activation parameters, and the choice of layers with a low-rank branch, if any."""
    ACTIVATIONS = auto()
    """Activation parameters only."""
    OTHER_NETWORKS = auto()
    """Networks beside the denoiser, and nothing of it."""


@dataclass(frozen=True)
class Key:
    """Recipe key without its name and default, which the field states.

    Args:
        summary: Description in one line, for the command line and the docs.
        parse: Parser of a plain value, e.g. from a recipe file; raises ValueError that names the key.
        plain: Inverse of ``parse``; returns a JSON value.
        option: Type of the command line's option.
        decides: Results that the key affects.
        recalibrates: Whether ``recalibrate`` may change the key for an artifact with rounded weights.
        flag: Name of the command line's option if it differs from the key's.
        optional: Whether manifests leave the key out where it has its default, as earlier versions did.
    """

    summary: str
    parse: Callable[[str, Any], Any]
    plain: Callable[[Any], Any]
    option: Any
    decides: Decides
    recalibrates: bool
    flag: str | None
    optional: bool


def key(
    default: Any,
    parse: Callable[[str, Any], Any],
    summary: str,
    *,
    plain: Callable[[Any], Any] = lambda value: value,
    option: Any = str,
    decides: Decides = Decides.WEIGHTS,
    recalibrates: bool = False,
    flag: str | None = None,
    optional: bool = False,
) -> Any:
    """Declares a field of a recipe.

    Args:
        default: Default value of the field.
        parse: See :class:`Key`.
        summary: See :class:`Key`.
        plain: See :class:`Key`.
        option: See :class:`Key`.
        decides: See :class:`Key`.
        recalibrates: See :class:`Key`.
        flag: See :class:`Key`.
        optional: See :class:`Key`.

    Returns:
        A dataclass field with the key in its metadata.
    """
    declared = Key(summary, parse, plain, option, decides, recalibrates, flag, optional)
    return field(default=default, metadata={METADATA: declared})


def whole(low: int, high: int) -> Callable[[str, Any], int]:
    """Returns a parser of whole numbers from ``low`` to ``high``."""

    def parse(name: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"{name} is {value!r}; it must be a whole number from {low} to {high}")
        return value

    return parse


def number(name: str, value: Any) -> float:
    """Parses a finite number; raises ValueError for anything else."""
    try:
        parsed = float(value)
    except (TypeError, ValueError, OverflowError):
        parsed = math.nan
    if not math.isfinite(parsed):
        raise ValueError(f"{name} is {value!r}; it must be a finite number")
    return parsed


def text(name: str, value: Any) -> str:
    """Parses a text; raises ValueError for anything else."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}; it must be a text")
    return value


def choice(choices: type[StrEnum]) -> Callable[[str, Any], StrEnum]:
    """Returns a parser of members of ``choices``."""

    def parse(name: str, value: Any) -> StrEnum:
        if value not in list(choices):
            raise ValueError(f"{name} is {value!r}; choose from {', '.join(choices)}")
        return choices(value)

    return parse


def optional(parse: Callable[[str, Any], Any], none: str = "none") -> Callable[[str, Any], Any]:
    """Returns a parser of None, also written ``none``, and of what ``parse`` accepts; digit strings become numbers."""

    def parse_optional(name: str, value: Any) -> Any:
        if value in (None, none):
            return None
        return parse(name, int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value) else value)

    return parse_optional


def or_none(value: Any, none: str = "none") -> Any:
    """Returns ``none`` as text for None, the value otherwise."""
    return none if value is None else value


def patterns(name: str, value: Any) -> tuple[str, ...]:
    """Parses a pattern of layer names, or a list of them; raises ValueError for anything else."""
    several = (value,) if isinstance(value, str) else value
    if not isinstance(several, list | tuple) or not all(isinstance(pattern, str) for pattern in several):
        raise ValueError(f"{name} is {value!r}; it must be a list of patterns of layer names")
    return tuple(several)


def named_value(text: str) -> tuple[str, Any] | None:
    """Splits ``NAME=VALUE``; returns None for other text.

    The value is parsed as JSON, else as comma-separated numbers, else it is the text itself.
    """
    name, equals, value = text.partition("=")
    if not (name and equals):
        return None
    parsed = _json_value(value)
    is_text = isinstance(parsed, str) or (isinstance(parsed, list) and all(isinstance(item, str) for item in parsed))
    return name, value if is_prompt_text(name) and not is_text else parsed


def _json_value(text: str) -> Any:
    parsed = read_json(text)
    if parsed is not None or text == "null":
        return parsed
    numbers = read_json(f"[{text}]")
    return numbers if numbers and all(isinstance(item, int | float) for item in numbers) else text


def read_json(text: str) -> Any:
    """Reads a JSON value; None if the text is none, is nested too deeply or holds a number of too many digits."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def keys_of(recipe: type) -> Mapping[str, Key]:
    """Returns the keys of a recipe class by name, in order."""
    return {name: entry.metadata[METADATA] for name, entry in recipe.__dataclass_fields__.items()}  # type: ignore[attr-defined]
