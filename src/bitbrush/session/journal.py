"""Journal of finished pieces of work on disk, from which an interrupted run resumes.

A piece is a file of three parts: a line with the format and its version, a line with a SHA-256, and safetensors. The
digest also covers the facts of the work and the piece's name, so a piece never passes for another one.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from bitbrush.session.digests import file_digest, json_digest
from bitbrush.session.disk import write_whole
from bitbrush.session.ranks import ALONE, Ranks
from bitbrush.session.replacing import remove_folder

FORMAT, VERSION = "bitbrush-journal", 2
FINGERPRINT, SAVED = "fingerprint.json", "saved"
_PIECES = "*.piece"
_TEMPORARY = (".*.[0-9]*-[0-9]*.part", "tmp*.offload")
"""Files that only a running process needs."""
_HEADER = f"{FORMAT} {VERSION}\n".encode()


@dataclass(frozen=True)
class Journal:
    """Finished pieces of work by name; each is a file that appears whole or not at all.

    Without a ``folder`` nothing is kept. With several processes, ``ranks``, only the first reads and writes files; it
    sends the others what it reads.

    Args:
        folder: Folder of the pieces.
        ranks: Processes that share the work.
        work: Digest of the facts of the work.
    """

    folder: Path | None = None
    ranks: Ranks = ALONE
    work: str = ""

    def read(self, piece: str) -> dict[str, Tensor] | None:
        """Returns the tensors of a finished piece; None if it is still to be done.

        Raises:
            ValueError: The piece is damaged or of other work.
        """
        path = self._path(piece)
        return self.ranks.from_first(lambda: load(self._content(path)) if path is not None and path.exists() else None)

    def write(self, piece: str, tensors: dict[str, Tensor]) -> None:
        """Writes a finished piece.

        Raises:
            DiskError: The disk is full or read-only; no partial file remains.
        """
        path = self._path(piece)
        if path is not None and self.ranks.leads:
            content = save({key: tensor.cpu().contiguous() for key, tensor in tensors.items()})
            write_whole(_HEADER + self._digest(piece, content) + content, path)

    def pieces(self) -> tuple[str, ...]:
        """Returns the names of the finished pieces."""
        return tuple(sorted(path.stem for path in self._paths()))

    @property
    def size(self) -> int:
        """Bytes of the finished pieces."""
        return sum(path.stat().st_size for path in self._paths())

    def require_intact(self) -> None:
        """Verifies the digests of all pieces.

        Raises:
            ValueError: A piece is damaged or of other work; the message names the file.
        """
        for path in self._paths():
            self._content(path)

    def _paths(self) -> list[Path]:
        return list(self.folder.glob(_PIECES)) if self.folder else []

    def _path(self, piece: str) -> Path | None:
        return self.folder / f"{piece}.piece" if self.folder else None

    def _content(self, path: Path) -> bytes:
        data = path.read_bytes()
        content = data[len(_HEADER) + len(self._digest("", b"")) :]
        if data != _HEADER + self._digest(path.stem, content) + content:
            raise ValueError(
                f"{path} is damaged or belongs to other work (its SHA-256 differs); remove it and run the same command "
                "again, which does only this piece anew"
            )
        return content

    def _digest(self, piece: str, content: bytes) -> bytes:
        digest = hashlib.sha256(f"{self.work}\n{piece}\n".encode())
        digest.update(content)
        return f"{digest.hexdigest()}\n".encode()


NO_JOURNAL = Journal()


def open_journal(folder: Path, facts: Mapping[str, Any], ranks: Ranks = ALONE) -> Journal:
    """Opens the journal in ``folder``, and creates it if there is none.

    Args:
        folder: Contains the pieces.
        facts: JSON values that decide the result, by name. Work done under other facts cannot be resumed.
        ranks: Processes that share the work.

    Raises:
        ValueError: The folder holds unfinished work of other facts or of another version, is damaged, or is not a
            journal's.
        DiskError: The disk is full or read-only.
    """
    require_same_work(folder, facts)
    journal = Journal(folder, ranks, json_digest(facts))
    journal.require_intact()
    if not journal.pieces():
        stamp = {"format": FORMAT, "version": VERSION, "digest": journal.work, "facts": facts}
        write_whole(json.dumps(stamp, indent=1) + "\n", folder / FINGERPRINT)
    return journal


def require_same_work(folder: Path, facts: Mapping[str, Any]) -> None:
    """Checks that unfinished work in the folder was done under the same ``facts``.

    Args:
        folder: Folder of the journal; it need not exist.
        facts: JSON values by name, as many as are known yet.

    Raises:
        ValueError: Some differ; the message names them. Or the folder is damaged or not a journal's.
    """
    theirs = _facts(folder)
    if theirs is None:
        return
    facts = json.loads(json.dumps(facts))  # JSON turns tuples into lists
    unlike = [
        f"{name}{_difference(theirs.get(name), ours)}" for name, ours in facts.items() if theirs.get(name) != ours
    ]
    if unlike:
        raise ValueError(
            f"{folder} holds unfinished work for another {' and another '.join(unlike)}; go on with the command that "
            "began it, remove that folder to start anew, or choose another output"
        )


def mark_saved(folder: Path, result: Path) -> None:
    """Records the digest of a result that is about to be put in place: from then on the work is finished.

    Raises:
        DiskError: The disk is full or read-only.
    """
    if folder.exists():
        write_whole(file_digest(result), folder / SAVED)


def remove_saved(folder: Path, result: Path) -> None:
    """Removes work whose result, the file that :func:`mark_saved` recorded, is in place.

    A process that is killed between the two leaves such work.
    """
    path = folder / SAVED
    if path.exists() and result.is_file() and path.read_bytes() == file_digest(result).encode():
        remove_folder(folder)


def remove_temporary(folder: Path) -> None:
    """Removes files that a killed process left; no other process may use the folder."""
    for pattern in _TEMPORARY:
        for path in folder.glob(pattern):
            path.unlink()


def remove_unstarted(folder: Path) -> None:
    """Removes a journal without pieces."""
    if not Journal(folder).pieces() and not _foreign(folder):
        remove_folder(folder)


def _facts(folder: Path) -> dict[str, Any] | None:
    """Returns the facts of the unfinished work in a folder; None if there is no finished piece.

    Raises:
        ValueError: The folder is damaged, not a journal's, or of another version.
    """
    foreign = _foreign(folder)
    if not Journal(folder).pieces() and not foreign:
        return None
    path, remedy = folder / FINGERPRINT, f"remove {folder} to start anew, or choose another output"
    if not path.exists():
        raise ValueError(f"{folder} holds no {FINGERPRINT}: it is half removed, or no folder of work; {remedy}")
    try:
        stamp = json.loads(path.read_bytes())
        version = stamp.get("version", 1)  # version 1 had no such entry
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); {remedy}") from error
    if version != VERSION:
        raise ValueError(f"{path} is of version {version}, and this bitbrush reads {VERSION}; {remedy}")
    if foreign:
        raise ValueError(f"{folder} holds {foreign[0]}, which no quantization wrote; move it away, or {remedy}")
    if stamp.get("format") != FORMAT or json_digest(stamp.get("facts")) != stamp.get("digest"):
        raise ValueError(f"{path} is damaged (its SHA-256 differs); {remedy}")
    facts: dict[str, Any] = stamp["facts"]
    return facts


def _foreign(folder: Path) -> list[str]:
    """Returns the names of files that are no journal's."""
    patterns = (FINGERPRINT, SAVED, _PIECES, *_TEMPORARY)
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path.name for path in paths if not any(path.match(pattern) for pattern in patterns)]


def _difference(theirs: Any, ours: Any) -> str:
    """Formats the keys of two mappings that differ, with both values; empty for other types."""
    if not isinstance(theirs, dict) or not isinstance(ours, dict):
        return ""
    unlike = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    return f" ({', '.join(f'{key} is {theirs.get(key)} there and {ours.get(key)} here' for key in unlike)})"
