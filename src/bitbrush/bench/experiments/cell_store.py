"""Files of measured cells: groups of arrays and JSON facts in one safetensors file, or the reason of a failure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bitbrush.session.disk import write_whole

Groups = Mapping[str, Mapping[str, NDArray[Any]]]
_METADATA, _PROBLEM = "cell", "problem"


@dataclass(frozen=True)
class StoredCell:
    """Content of a cell's file.

    Args:
        groups: Arrays by name in named groups.
        facts: JSON values.
    """

    groups: Groups
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FailedCell:
    """Reason why a cell could not be measured."""

    problem: str


def write_cell(cell: StoredCell | FailedCell, path: Path) -> None:
    """Writes a cell completely or not at all."""
    groups: Groups = {} if isinstance(cell, FailedCell) else cell.groups
    facts = {_PROBLEM: cell.problem} if isinstance(cell, FailedCell) else cell.facts
    # Images may lie in memory channels first; safetensors writes the bytes in memory order.
    arrays = {
        _key(group, name): np.ascontiguousarray(array)
        for group, members in groups.items()
        for name, array in members.items()
    }
    write_whole(save(arrays, metadata={_METADATA: json.dumps(facts)}), path)


def read_cell(path: Path) -> StoredCell | FailedCell:
    """Reads a cell.

    Raises:
        ValueError: The file is damaged.
    """
    groups: dict[str, dict[str, NDArray[Any]]] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            facts = json.loads(file.metadata()[_METADATA])
            for key in file.keys():  # noqa: SIM118 - no dictionary
                name, _, group = key.partition("|")
                groups.setdefault(group, {})[name] = file.get_tensor(key)
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise damaged(path, error) from error
    return FailedCell(facts[_PROBLEM]) if _PROBLEM in facts else StoredCell(groups, facts)


def damaged(path: Path, error: Exception) -> ValueError:
    """Returns the error to raise for a damaged file."""
    return ValueError(f"{path} is damaged ({error}); delete it and run again")


def _key(group: str, name: str) -> str:
    return f"{name}|{group}" if group else name
