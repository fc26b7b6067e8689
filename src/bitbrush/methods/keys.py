"""How a recipe key is declared: once, and everything that needs to know of it reads the declaration.

The command line's options, recipe files, the manifest, the table in the docs, ``recalibrate`` and the reuse of rounded
weights between the recipes of an ablation follow from the :class:`Key` of each field of
:class:`~bitbrush.methods.recipe.Recipe`.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from typing import Any

from bitbrush.timeline.plan import is_prompt_text

METADATA = "key"
"""Where a field's metadata holds its :class:`Key`."""


class Decides(Enum):
    """What a key decides: which earlier results stay valid when it changes."""

    NETWORK = auto()
    """Which network is quantized: its layers or their weights before rounding."""
    WEIGHTS = auto()
    """The integers of the weights."""
    SENSITIVITIES = auto()
    """Activation parameters, and through measured sensitivities the weight bits where these are measured."""
    BRANCHES = auto()
    """Activation parameters, and which layers get a low-rank branch where layers get one."""
    ACTIVATIONS = auto()
    """Activation parameters alone."""


@dataclass(frozen=True)
class Key:
    """One recipe key apart from its name and default, which the field states.

    Args:
        summary: One line, for the command line and the docs.
        parse: Reads a plain value, as of a recipe file; raises ValueError that names the key.
        plain: Turns a value back into what ``parse`` reads and JSON holds.
        option: Type of the command line's option.
        decides: What depends on the key.
        recalibrates: Whether ``recalibrate`` may change it on an artifact whose weights are rounded already.
        flag: Name of the command line's option where it is not the key's own.
    """

    summary: str
    parse: Callable[[str, Any], Any]
    plain: Callable[[Any], Any]
    option: Any
    decides: Decides
    recalibrates: bool
    flag: str | None


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
) -> Any:
    """Declares a field of a recipe; the arguments are those of :class:`Key`."""
    declared = Key(summary, parse, plain, option, decides, recalibrates, flag)
    return field(default=default, metadata={METADATA: declared})


def whole(low: int, high: int | None = None) -> Callable[[str, Any], int]:
    """Reads whole numbers from ``low`` to ``high``."""

    def parse(name: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
            limit = f"at least {low}" if high is None else f"from {low} to {high}"
            raise ValueError(f"{name} is {value!r}; it must be a whole number {limit}")
        return value

    return parse


def number(name: str, value: Any) -> float:
    """Reads a number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {value!r}; it must be a number") from None


def text(_: str, value: Any) -> str:
    """Reads a text."""
    return str(value)


def choice(choices: type[StrEnum]) -> Callable[[str, Any], StrEnum]:
    """Reads one of ``choices``."""

    def parse(name: str, value: Any) -> StrEnum:
        if value not in list(choices):
            raise ValueError(f"{name} is {value!r}; choose from {', '.join(choices)}")
        return choices(value)

    return parse


def optional(parse: Callable[[str, Any], Any], none: str = "none") -> Callable[[str, Any], Any]:
    """Reads what ``parse`` does, or None, also written as the text ``none``; digits of an option are a number."""

    def parse_optional(name: str, value: Any) -> Any:
        if value in (None, none):
            return None
        return parse(name, int(value) if isinstance(value, str) and value.isdecimal() else value)

    return parse_optional


def or_none(value: Any, none: str = "none") -> Any:
    """Writes None as the text ``none``."""
    return none if value is None else value


def patterns(name: str, value: Any) -> tuple[str, ...]:
    """Reads a pattern of layer names, or a list of them."""
    several = (value,) if isinstance(value, str) else value
    if not isinstance(several, list | tuple) or not all(isinstance(pattern, str) for pattern in several):
        raise ValueError(f"{name} is {value!r}; it must be a list of patterns of layer names")
    return tuple(several)


def named_value(text: str) -> tuple[str, Any] | None:
    """Splits ``NAME=VALUE``; None for a text of another form.

    The value is read as JSON, or as numbers with commas between, or else as it stands.
    """
    name, equals, value = text.partition("=")
    if not (name and equals):
        return None
    parsed = _json_value(value)
    is_text = isinstance(parsed, str) or (isinstance(parsed, list) and all(isinstance(one, str) for one in parsed))
    return name, value if is_prompt_text(name) and not is_text else parsed


def _json_value(text: str) -> Any:
    with suppress(json.JSONDecodeError):
        return json.loads(text)
    with suppress(json.JSONDecodeError):
        numbers = json.loads(f"[{text}]")
        if numbers and all(isinstance(one, int | float) for one in numbers):
            return numbers
    return text


def keys_of(recipe: type) -> Mapping[str, Key]:
    """Returns the keys of a recipe class by name, in order."""
    return {name: one.metadata[METADATA] for name, one in recipe.__dataclass_fields__.items()}  # type: ignore[attr-defined]
