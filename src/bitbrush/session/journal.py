"""Finished pieces of long work on disk, so that it can be taken up after whatever ended it."""

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from bitbrush.session.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Journal:
    """Pieces of work by name, each a file that appears whole or not at all; without a ``folder`` nothing is kept.

    Of several processes, ``ranks``, the first alone reads and writes files, and tells the others what it reads.
    """

    folder: Path | None = None
    ranks: Ranks = ALONE

    def read(self, piece: str) -> dict[str, Tensor] | None:
        """The tensors of a finished piece; None if it is still to be done."""
        path = self._path(piece)
        return self.ranks.from_first(lambda: load_file(path) if path is not None and path.exists() else None)

    def write(self, piece: str, tensors: dict[str, Tensor]) -> None:
        path = self._path(piece)
        if path is not None and self.ranks.leads:
            partial = path.with_suffix(".part")
            partial.write_bytes(save({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}))
            partial.replace(path)

    def pieces(self) -> tuple[str, ...]:
        """The names of the finished ones."""
        return tuple(sorted(path.stem for path in self.folder.glob("*.safetensors"))) if self.folder else ()

    @property
    def size(self) -> int:
        """Bytes of the finished ones."""
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors")) if self.folder else 0

    def _path(self, piece: str) -> Path | None:
        return self.folder / f"{piece}.safetensors" if self.folder else None


NO_JOURNAL = Journal()
