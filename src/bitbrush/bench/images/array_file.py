"""Arrays with what is told of them, in one safetensors file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bitbrush.session.disk import write_whole

_TOLD = "cell"


def write_arrays(arrays: Mapping[str, NDArray[Any]], told: Mapping[str, Any], path: Path) -> None:
    """All of it, or nothing; ``told`` as JSON."""
    # In memory a picture's channels may come first; safetensors writes what lies there.
    laid_out = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_whole(save(laid_out, metadata={_TOLD: json.dumps(told)}), path)


def read_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays by name, and what is told of them. Raises ValueError for a damaged file."""
    try:
        with safe_open(path, framework="numpy") as file:
            told = json.loads(file.metadata()[_TOLD])
            return {name: file.get_tensor(name) for name in file.keys()}, told  # noqa: SIM118 - no dictionary
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is damaged ({error}); delete it and run again")
