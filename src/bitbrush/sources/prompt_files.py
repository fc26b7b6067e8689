"""Prompts from files (text, COCO annotations, tables), on disk or on the hub."""

import csv
import io
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from bitbrush.sources.prompt_texts import require_text

HUB = "hf://datasets/"
LARGEST = 2**31
"""Bytes; COCO's captions are 90 MB."""
COLUMNS = ("prompt", "caption", "text")


def read_prompt_file(source: str) -> tuple[str, ...]:
    """Reads the non-blank prompts of a file, in order, stripped.

    The suffix selects the format. ``.json`` is COCO's ``captions_*.json``: the first caption of every image (lowest
    annotation id), images in the order of their id. ``.csv`` and ``.parquet`` (extra ``parquet``) are tables with a
    column "Prompt", "caption" or "text", the format of Stable-Diffusion-Prompts. Other files are text, one prompt a
    line.

    Args:
        source: Path of the file, or ``hf://datasets/OWNER/NAME/PATH``, which is fetched from the hub first.

    Raises:
        ValueError: The file is missing, unreadable, or has no prompts.
    """
    path = _fetched(source) if source.startswith(HUB) else Path(source)
    readers: dict[str, Callable[[bytes], list[str]]] = {".json": _coco, ".csv": _csv, ".parquet": _parquet}
    try:
        lines = readers.get(path.suffix, _text)(_content(path))
    except FileNotFoundError:
        raise ValueError(f"prompts {source!r}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts {source!r}: the file is not UTF-8 text ({error}); convert it") from error
    except (csv.Error, RecursionError, OverflowError) as error:
        raise ValueError(f"prompts {source!r}: the file is damaged ({error}); write it again") from error
    except OSError as error:
        raise ValueError(f"prompts {source!r}: the file cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise ValueError(f"prompts {source!r}: {error}") from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise ValueError(f"prompts {source!r}: the file is empty; write one prompt a line")
    for number, prompt in enumerate(prompts, 1):
        require_text(prompt, f"prompts {source!r}: prompt {number}")
    return prompts


def _content(path: Path) -> bytes:
    """Reads a regular file; a pipe or device might never end."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise ValueError("it is a folder; name a file of prompts in it")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file; write the prompts into one")
    if status.st_size > LARGEST:
        raise ValueError(f"the file has {status.st_size} bytes; at most {LARGEST} are read")
    return path.read_bytes()


def _text(content: bytes) -> list[str]:
    return content.decode("utf-8-sig").splitlines()


def _coco(content: bytes) -> list[str]:
    try:
        annotations = json.loads(content)["annotations"]
        first: dict[int, tuple[int, str]] = {}
        for annotation in annotations:
            image, row = int(annotation["image_id"]), (int(annotation["id"]), str(annotation["caption"]))
            first[image] = min(first.get(image, row), row)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"the file is not COCO's captions ({type(error).__name__}: {error}); it needs annotations with image_id, "
            "id and caption"
        ) from error
    return [" ".join(first[image][1].split()) for image in sorted(first)]


def _csv(content: bytes) -> list[str]:
    rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    column = _column(list(rows.fieldnames or []))
    return [_line(row[column]) for row in rows]


def _parquet(content: bytes) -> list[str]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ValueError("a parquet file needs the package pyarrow: pip install 'bitbrush[parquet]'") from None
    try:
        table = parquet.read_table(io.BytesIO(content))
    except ArrowException as error:
        raise ValueError(f"the file is no intact parquet table ({error}); write it again") from error
    return [_line(value) for value in table.column(_column(table.column_names)).to_pylist()]


def _column(names: list[str]) -> str:
    for column in COLUMNS:
        for name in names:
            if name.lower() == column:
                return name
    choices = " or ".join(COLUMNS)
    raise ValueError(f"the table has columns {', '.join(names) or 'none'}; one called {choices} is needed")


def _line(value: Any) -> str:
    """Joins the lines of a table's cell, because a prompt is one line."""
    return " ".join(str(value or "").split())


def _fetched(source: str) -> Path:
    parts = source.removeprefix(HUB).split("/", 2)
    if len(parts) < 3:
        raise ValueError(f"prompts {source!r}: a file on the hub is {HUB}OWNER/NAME/PATH")
    try:
        return Path(hf_hub_download("/".join(parts[:2]), parts[2], repo_type="dataset"))
    except (RepositoryNotFoundError, EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ValueError(f"prompts {source!r} cannot be fetched from the hub: {error}; give a local file") from error
