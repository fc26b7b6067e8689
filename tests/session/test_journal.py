"""Pieces of work: whole or not there."""

from pathlib import Path

import pytest
import torch

from bitbrush.session import journal as journal_module
from bitbrush.session.journal import NO_JOURNAL, Journal


def test_what_is_written_is_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    tensors = {"a": torch.arange(6).view(2, 3).T, "b": torch.tensor(0.1, dtype=torch.float64)}
    assert journal.read("block-x.0.y") is None
    journal.write("block-x.0.y", tensors)
    journal.write("visit-0000", {"c": torch.ones(1)})
    kept = journal.read("block-x.0.y")
    assert kept is not None
    assert kept.keys() == tensors.keys()
    assert all(torch.equal(kept[key], tensors[key]) and kept[key].dtype == tensors[key].dtype for key in tensors)
    assert journal.pieces() == ("block-x.0.y", "visit-0000")


def test_half_a_piece_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(_: object) -> bytes:
        (tmp_path / ".block.safetensors.1.part").write_bytes(b"half")
        raise KeyboardInterrupt

    journal = Journal(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(journal_module, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            journal.write("block", {"a": torch.ones(1)})
    assert journal.read("block") is None
    assert journal.pieces() == ()
    journal.write("block", {"a": torch.ones(1)})
    assert journal.pieces() == ("block",)


def test_without_a_folder_nothing_is_kept() -> None:
    NO_JOURNAL.write("a", {"a": torch.ones(1)})
    assert NO_JOURNAL.read("a") is None
    assert NO_JOURNAL.pieces() == ()
