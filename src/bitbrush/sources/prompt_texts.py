"""Checks of prompts as Python values and as texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

LONGEST = 10_000
"""Characters of a prompt; text encoders read a few hundred tokens."""


def prompt_texts(prompts: Any, name: str = "prompts") -> tuple[str, ...]:
    """Returns prompts as a tuple: those of a list, tuple, another sequence or a one-dimensional array of texts.

    Args:
        prompts: Prompts of a caller.
        name: Name of the argument, for messages.

    Raises:
        ValueError: They are a single text, another type, or hold something else than readable texts.
    """
    if isinstance(prompts, str):
        raise ValueError(f"{name} is the text {shortened(prompts)!r}; give a list of texts, [{name}]")
    values = prompts.tolist() if isinstance(prompts, np.ndarray) and prompts.ndim == 1 else prompts
    if not isinstance(values, Sequence) or isinstance(values, bytes | bytearray | memoryview | range):
        raise ValueError(f"{name} is a {type(prompts).__name__}; give a list of texts")
    for place, prompt in enumerate(values):
        if not isinstance(prompt, str):
            raise ValueError(f"{name}[{place}] is {prompt!r}, a {type(prompt).__name__}; give texts")
        require_text(prompt, f"{name}[{place}]")
    return tuple(map(str, values))


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
