"""Checks of prompts as Python values and as texts."""

from collections.abc import Iterable, Mapping, Set
from itertools import islice
from typing import Any

LONGEST = 10_000
"""Characters of a prompt; text encoders read a few hundred tokens."""

_NO_TEXTS = (bytes, bytearray, memoryview, range, Mapping, Set)


def prompt_texts(prompts: Any, count: int | None = None, name: str = "prompts") -> tuple[str, ...]:
    """Returns the first ``count`` prompts of any ordered collection: a list, an array, a table's column, a generator.

    Args:
        prompts: Prompts of a caller.
        count: Number of prompts to read; None reads all.
        name: Name of the argument, for messages.

    Raises:
        ValueError: They are a single text or have no order, or an element is no readable text.
    """
    if isinstance(prompts, str):
        raise ValueError(f"{name} is the text {shortened(prompts)!r}; give a list of texts, [{name}]")
    if isinstance(prompts, _NO_TEXTS) or not isinstance(prompts, Iterable):
        raise ValueError(f"{name} is a {type(prompts).__name__}; give a list of texts")
    texts = []
    for place, prompt in enumerate(islice(prompts, count)):
        if not isinstance(prompt, str):
            raise ValueError(f"{name}[{place}] is {prompt!r}, a {type(prompt).__name__}; give texts")
        require_text(prompt, f"{name}[{place}]")
        texts.append(str(prompt))
    return tuple(texts)


def require_text(text: str, name: str) -> None:
    """Checks that a prompt is text that an encoder and a file can hold.

    Raises:
        ValueError: It holds NUL bytes, is no valid Unicode or is too long; the message names it.
    """
    if "\0" in text:
        raise ValueError(f"{name} holds a NUL byte ({shortened(text)!r}); it is binary data, not text")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{name} is no valid Unicode ({shortened(text)!r}); write it in UTF-8")
    if len(text) > LONGEST:
        raise ValueError(f"{name} has {len(text)} characters ({shortened(text)!r}); a prompt has at most {LONGEST}")


def shortened(text: str) -> str:
    """Returns the first 80 characters of a text."""
    return text if len(text) <= 80 else f"{text[:77]}..."
