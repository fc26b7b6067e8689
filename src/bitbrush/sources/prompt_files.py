"""Prompts from files (text, COCO annotations, tables), on disk or on the hub."""

import csv
import io
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from bitbrush.sources.prompt_texts import require_text

HUB = "hf://datasets/"
LARGEST = 2**31
"""Bytes; COCO's captions are 90 MB."""
FOLDER = "BITBRUSH_PROMPTS"
"""Variable that names the folder with the files of standard prompt sets."""
STANDARD = {
    "mjhq-30k": ("meta_data.json",),
    "sdci": ("sDCI.yaml",),
    "drawbench": ("DrawBench.csv", "drawbench.csv"),
    "coco-captions": ("captions_val2017.json", "captions_val2014.json"),
}
"""Standard prompt sets, and the files that they are published as."""
COLUMNS = ("prompt", "prompts", "caption", "text")


def read_prompt_file(source: str) -> tuple[str, ...]:
    """Reads the non-blank prompts of a file, in order, stripped.

    The suffix selects the format. ``.json`` is COCO's ``captions_*.json``: the first caption of every image (lowest
    annotation id), images in the order of their id; or MJHQ-30K's ``meta_data.json``: the prompt of every entry.
    ``.yaml`` maps names to prompts, as sDCI's does. ``.csv`` and ``.parquet`` (extra ``parquet``) are tables with a
    column "Prompt", "Prompts", "caption" or "text", the formats of Stable-Diffusion-Prompts and DrawBench. Other files
    are text, one prompt a line.

    Args:
        source: Path of the file, a name of :data:`STANDARD`, or ``hf://datasets/OWNER/NAME/PATH``, which is fetched
            from the hub first.

    Raises:
        ValueError: The file is missing, unreadable, or has no prompts.
    """
    path = _fetched(source) if source.startswith(HUB) else _standard_file(source) or Path(source)
    readers: dict[str, Callable[[bytes], list[str]]] = {
        ".json": _json,
        ".yaml": _yaml,
        ".yml": _yaml,
        ".csv": _csv,
        ".parquet": _parquet,
    }
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


def _standard_file(name: str) -> Path | None:
    """Returns the file of a standard prompt set; None for any other source.

    Raises:
        ValueError: The folder of such files is not named, or lacks it.
    """
    if name not in STANDARD or Path(name).exists():
        return None
    folder, files = os.environ.get(FOLDER), STANDARD[name]
    if folder is None:
        raise ValueError(f"prompts {name!r}: set {FOLDER} to the folder with {' or '.join(files)}, or name the file")
    found = [path for file in files for path in (Path(folder, name, file), Path(folder, file)) if path.is_file()]
    if not found:
        raise ValueError(f"prompts {name!r}: {folder} ({FOLDER}) has no {' or '.join(files)}; put it there")
    return found[0]


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


def _json(content: bytes) -> list[str]:
    try:
        document = json.loads(content)
    except json.JSONDecodeError as error:
        raise ValueError(f"the file is not COCO's captions, and no JSON at all ({error})") from error
    entries = list(document.values()) if isinstance(document, dict) else []
    if entries and all(isinstance(entry, dict) and "prompt" in entry for entry in entries):  # MJHQ-30K
        return [_line(entry["prompt"]) for entry in entries]
    return _coco(document)


def _yaml(content: bytes) -> list[str]:
    try:
        document = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ValueError(f"the file is no YAML ({' '.join(str(error).split())}); write it again") from error
    if not isinstance(document, dict):
        raise ValueError("the file is no table of prompts by name, as sDCI's is")
    return [_line(prompt) for prompt in document.values()]


def _coco(document: Any) -> list[str]:
    try:
        annotations = document["annotations"]
        first: dict[int, tuple[int, str]] = {}
        for annotation in annotations:
            image, row = int(annotation["image_id"]), (int(annotation["id"]), str(annotation["caption"]))
            first[image] = min(first.get(image, row), row)
    except (KeyError, TypeError) as error:
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
