"""Journal of finished pieces of work on disk, from which an interrupted run resumes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from bitbrush.session.disk import write_whole
from bitbrush.session.ranks import ALONE, Ranks

FINGERPRINT = "fingerprint.json"


@dataclass(frozen=True)
class Journal:
    """Finished pieces of work by name; each is a file that appears whole or not at all.

    Without a ``folder`` nothing is kept. With several processes, ``ranks``, only the first reads and writes files; it
    sends the others what it reads.
    """

    folder: Path | None = None
    ranks: Ranks = ALONE

    def read(self, piece: str) -> dict[str, Tensor] | None:
        """Returns the tensors of a finished piece; None if it is still to be done."""
        path = self._path(piece)
        return self.ranks.from_first(lambda: _read(path) if path is not None and path.exists() else None)

    def write(self, piece: str, tensors: dict[str, Tensor]) -> None:
        """Writes a finished piece.

        Raises:
            DiskError: The disk is full or read-only; no partial file remains.
        """
        path = self._path(piece)
        if path is not None and self.ranks.leads:
            write_whole(save({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}), path)

    def pieces(self) -> tuple[str, ...]:
        """Returns the names of the finished pieces."""
        return tuple(sorted(path.stem for path in self.folder.glob("*.safetensors"))) if self.folder else ()

    @property
    def size(self) -> int:
        """Bytes of the finished pieces."""
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors")) if self.folder else 0

    def _path(self, piece: str) -> Path | None:
        return self.folder / f"{piece}.safetensors" if self.folder else None


NO_JOURNAL = Journal()


def work_folder(output: Path) -> Path:
    """Returns the folder of unfinished work for ``output``: hidden, beside it."""
    return output.with_name(f".{output.name}.work")


def open_journal(folder: Path, facts: Mapping[str, Any], ranks: Ranks = ALONE) -> Journal:
    """Opens the journal in ``folder``, and creates it if there is none.

    Args:
        folder: Contains the pieces.
        facts: JSON values that decide the result, by name. Work done under other facts cannot be resumed.
        ranks: Processes that share the work.

    Raises:
        ValueError: The folder holds unfinished work of other facts, or is not a journal's.
        DiskError: The disk is full or read-only.
    """
    require_same_work(folder, facts)
    journal = Journal(folder, ranks)
    if folder.exists():
        if not journal.pieces() and {path.suffix for path in folder.iterdir()} - {".json", ".part"}:
            raise ValueError(f"{folder} exists and holds no {FINGERPRINT}; remove it or choose another output")
        for partial in folder.glob(".*.part"):  # left by a killed process
            partial.unlink()
    if not journal.pieces():
        write_whole(json.dumps(facts, indent=1) + "\n", folder / FINGERPRINT)
    return journal


def require_same_work(folder: Path, facts: Mapping[str, Any]) -> None:
    """Checks that unfinished work in the folder was done under the same ``facts``.

    Args:
        folder: Folder of the journal; it need not exist.
        facts: JSON values by name, as many as are known yet.

    Raises:
        ValueError: Some differ; the message names them.
    """
    if not Journal(folder).pieces():
        return
    theirs = json.loads((folder / FINGERPRINT).read_text(encoding="utf-8"))
    facts = json.loads(json.dumps(facts))  # JSON turns tuples into lists
    unlike = [
        f"{name}{_difference(theirs.get(name), ours)}" for name, ours in facts.items() if theirs.get(name) != ours
    ]
    if unlike:
        raise ValueError(
            f"{folder} holds unfinished work for another {' and another '.join(unlike)}; go on with the command that "
            "began it, remove that folder to start anew, or choose another output"
        )


def _difference(theirs: Any, ours: Any) -> str:
    """Formats the keys of two mappings that differ, with both values; empty for other types."""
    if not isinstance(theirs, dict) or not isinstance(ours, dict):
        return ""
    unlike = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    return f" ({', '.join(f'{key} is {theirs.get(key)} there and {ours.get(key)} here' for key in unlike)})"


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and run the same command again") from error
