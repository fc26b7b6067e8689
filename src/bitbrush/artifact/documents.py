"""JSON documents of an artifact, read within limits and checked against a schema."""

import io
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

MAX_BYTES = 64 << 20
"""Largest size of a document; a vocabulary of 250,000 tokens takes a quarter of it."""
MAX_DEPTH = 32
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class ArtifactError(ValueError):
    """Error for a directory that is no intact artifact readable by this version."""


class DamagedError(ArtifactError):
    """Error for a document that breaks its rules; ``problem`` says where."""

    def __init__(self, path: Path | str, problem: object) -> None:
        super().__init__(f"{path} is damaged: {problem}; quantize or copy it again")
        self.path, self.problem = path, problem


@contextmanager
def opening(path: Path) -> Iterator[io.BufferedReader]:
    """Opens a regular file for reading; a FIFO or device would block or have no end.

    Raises:
        ArtifactError: The file is of another kind or cannot be read.
        FileNotFoundError: There is no such file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ArtifactError(f"{path} is no regular file; quantize or copy the artifact again")
    with os.fdopen(descriptor, "rb") as file:
        yield file


def read_whole(path: Path) -> bytes:
    """Reads a file of at most ``MAX_BYTES``.

    Raises:
        ArtifactError: The file is larger, of another kind, or cannot be read.
        FileNotFoundError: There is no such file.
    """
    with opening(path) as file:
        return limited(file, path)


def limited(file: io.BufferedReader, path: Path) -> bytes:
    """Reads the rest of an open file; raises ArtifactError for more than ``MAX_BYTES``."""
    content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ArtifactError(f"{path} has more than {MAX_BYTES >> 20} MiB, the limit of files besides tensors")
    return content


def parse(content: bytes, path: Path) -> Any:
    """Parses strict JSON: UTF-8, no key twice, no NaN, no number beyond float64, at most ``MAX_DEPTH`` levels.

    Infinity is accepted, as diffusers writes it for schedulers.

    Args:
        content: Bytes of the document.
        path: Path of the document, for messages.

    Returns:
        The parsed value.

    Raises:
        DamagedError: The document breaks a rule; the message names the file and the rule.
    """
    try:
        document = json.loads(
            content.decode(), object_pairs_hook=_unique, parse_constant=_constant, parse_float=_representable
        )
        _require_shallow(document)
        if _ESCAPED_SURROGATE.search(content):
            json.dumps(document, ensure_ascii=False).encode()  # half a pair is no character
    except RecursionError:
        raise DamagedError(path, f"nested deeper than {MAX_DEPTH}") from None
    except ValueError as error:  # also of numbers with thousands of digits
        raise DamagedError(path, error) from error
    return document


def require_schema(document: Any, schema: Any, path: Path | str) -> Any:
    """Checks a document against the type that describes it, and returns it as that type.

    Args:
        document: Parsed JSON.
        schema: Type as msgspec reads it.
        path: Path of the document, for messages.

    Returns:
        The document; of tables only the keys that the type names.

    Raises:
        DamagedError: The document does not conform; the message names the file, the field and what was expected.
    """
    try:
        return msgspec.convert(document, schema)
    except (msgspec.ValidationError, OverflowError) as error:
        raise DamagedError(path, error) from error


def unknown_keys(document: Any, known: Any, place: str = "$") -> Iterator[str]:
    """Yields the places of a document's keys that its schema does not name.

    Args:
        document: Parsed JSON.
        known: The document as :func:`require_schema` returned it.
        place: Place of the document, for the result.
    """
    if isinstance(document, dict):
        for key, value in document.items():
            if key in known:
                yield from unknown_keys(value, known[key], f"{place}.{key}")
            else:
                yield f"{place}.{key}"
    elif isinstance(document, list):
        for number, (value, other) in enumerate(zip(document, known, strict=True)):
            yield from unknown_keys(value, other, f"{place}[{number}]")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice!r} occurs twice")
    return unique


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("it holds NaN")
    return float(name)


def _representable(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"number {text[:20]} is too large")
    return value


def _require_shallow(document: Any) -> None:
    level = [document]
    for _ in range(MAX_DEPTH):
        parents = [one for one in level if type(one) in (dict, list)]  # as json makes them; vocabularies are long
        level = [child for one in parents for child in (one.values() if type(one) is dict else one)]
        if not level:
            return
    raise ValueError(f"nested deeper than {MAX_DEPTH}")
