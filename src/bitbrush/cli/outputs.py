"""Checks of a command's output path, before anything is loaded."""

import os
from collections.abc import Iterable
from pathlib import Path

from bitbrush.session.disk import require_replaceable, require_writable
from bitbrush.zoo import model_path

LONGEST_NAME, LONGEST_PATH = 180, 3000
"""Bytes of a name and of a whole path; systems allow 255 and 4096, and files beside and below need some of them."""


def require_output(
    output: Path, inputs: Iterable[str | os.PathLike[str] | None] = (), *, option: str = "--output"
) -> None:
    """Checks that the output can be written, and that it lies outside of what the command reads.

    Args:
        output: File or folder to write.
        inputs: Folders, files or other names that the command reads; None for one that is not given.
        option: Name of the option, for messages.

    Raises:
        ValueError: The path is too long, or it is or lies in an input, or a file is in the place of its folder.
        DiskError: Its folder takes no files.
    """
    if len(os.fsencode(output.name)) > LONGEST_NAME or len(os.fsencode(output.absolute())) > LONGEST_PATH:
        raise ValueError(
            f"{option} is {_shortened(str(output))!r}, a path of {len(os.fsencode(output))} bytes; a name has at most "
            f"{LONGEST_NAME} and a whole path {LONGEST_PATH}: choose a shorter one"
        )
    place = resolved(output)
    for one in (given for given in inputs if given is not None):
        read = resolved(model_path(os.fspath(one)) or Path(one))
        if read.exists() and (place == read or read in place.parents):
            raise ValueError(f"{option} is {output}, which is or lies in {one}, an input; choose a place outside of it")
    require_writable(output) if output.is_dir() else require_replaceable(output)


def resolved(path: Path) -> Path:
    """Resolves links; unlike ``Path.resolve`` in earlier versions of Python, also where they form a loop."""
    return Path(os.path.realpath(path))


def require_file_output(
    output: Path, inputs: Iterable[str | os.PathLike[str] | None] = (), *, option: str = "--output"
) -> None:
    """Checks as :func:`require_output` does, and that the output is a file if it exists: no folder and no device.

    Raises:
        ValueError: As there, or the output is something else.
        DiskError: As there.
    """
    require_output(output, inputs, option=option)
    if output.exists() and not output.is_file():
        raise ValueError(f"{option} is {output}, which is no file to replace; choose the name of a file")


def require_artifact_output(output: Path, inputs: Iterable[str | os.PathLike[str] | None] = ()) -> None:
    """Checks as :func:`require_output` does, and that the output has a name, since an artifact is renamed into place.

    Raises:
        ValueError: As there, or the output is the current folder or one above it.
        DiskError: As there.
    """
    require_output(output, inputs)
    if output.name in ("", ".."):
        raise ValueError(f"--output is {str(output)!r}; give the artifact's folder by its own name, e.g. ./NAME")


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
