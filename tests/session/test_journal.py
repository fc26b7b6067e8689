"""Pieces of work: whole or not there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bitbrush.session import journal as journal_module
from bitbrush.session.digests import json_digest
from bitbrush.session.journal import (
    FINGERPRINT,
    NO_JOURNAL,
    Journal,
    mark_saved,
    open_journal,
    remove_saved,
    remove_temporary,
    remove_unstarted,
    require_same_work,
)


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
        (tmp_path / ".block.piece.1-1.part").write_bytes(b"half")
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


FACTS = {"recipe": {"weights": 4}, "prompts": "a"}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with two finished pieces."""
    journal = open_journal(tmp_path / "work", FACTS)
    journal.write("a", {"x": torch.arange(4)})
    journal.write("b", {"x": torch.arange(8)})
    return tmp_path / "work"


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def test_a_flipped_bit_is_named(work: Path) -> None:
    """In the line of the version, in that of the digest, in names and shapes, and in the tensor."""
    path = work / "a.piece"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        for read in (lambda: open_journal(work, FACTS), lambda: Journal(work, work=json_digest(FACTS)).read("a")):
            with pytest.raises(ValueError, match=r"a\.piece is damaged or belongs to other work .*; remove it and run"):
                read()
    path.unlink()
    assert open_journal(work, FACTS).pieces() == ("b",)


@pytest.mark.parametrize("spoil", [truncated, lambda _: b"", lambda data: data + b"\0"])
@pytest.mark.parametrize("name", ["a.piece", "fingerprint.json"])
def test_a_truncated_or_empty_file_is_named(work: Path, name: str, spoil: Callable[[bytes], bytes]) -> None:
    (work / name).write_bytes(spoil((work / name).read_bytes()))
    with pytest.raises(ValueError, match=f"{name} is damaged.*; remove"):
        open_journal(work, FACTS)


def test_a_piece_of_other_work_or_of_another_name_is_refused(work: Path, tmp_path: Path) -> None:
    other = open_journal(tmp_path / "other", {**FACTS, "prompts": "b"})
    other.write("a", {"x": torch.arange(4) + 1})
    for source in (tmp_path / "other" / "a.piece", work / "b.piece"):
        shutil.copy(source, work / "a.piece")
        with pytest.raises(ValueError, match=r"a\.piece is damaged or belongs to other work"):
            open_journal(work, FACTS)


def of_version_1(work: Path) -> None:
    """Facts alone in the fingerprint, and pieces in plain safetensors."""
    (work / FINGERPRINT).write_text(json.dumps(FACTS), encoding="utf-8")
    for path in work.glob("*.piece"):
        path.rename(path.with_suffix(".safetensors"))


def of_version_9(work: Path) -> None:
    path = work / FINGERPRINT
    path.write_text(path.read_text(encoding="utf-8").replace('"version": 2', '"version": 9'), encoding="utf-8")


def with_other_facts(work: Path) -> None:
    path = work / FINGERPRINT
    path.write_text(path.read_text(encoding="utf-8").replace('"weights": 4', '"weights": 3'), encoding="utf-8")


def a_list(work: Path) -> None:
    (work / FINGERPRINT).write_text("[]", encoding="utf-8")


STATES = [
    (lambda work: (work / FINGERPRINT).unlink(), r"holds no fingerprint\.json: it is half removed"),
    (of_version_1, r"fingerprint\.json is of version 1, and this bitbrush reads 2"),
    (of_version_9, r"fingerprint\.json is of version 9, and this bitbrush reads 2"),
    (with_other_facts, r"fingerprint\.json is damaged \(its SHA-256 differs\)"),
    (a_list, r"fingerprint\.json is damaged"),
    (lambda work: (work / "notes.txt").touch(), r"work holds notes\.txt, which no quantization wrote"),
]


@pytest.mark.parametrize(("spoil", "said"), STATES)
def test_a_folder_that_cannot_be_resumed_is_named_and_left_as_it_is(
    work: Path, spoil: Callable[[Path], object], said: str
) -> None:
    spoil(work)
    before = {path.name: path.read_bytes() for path in work.iterdir()}
    for check in (open_journal, require_same_work):
        with pytest.raises(ValueError, match=rf"{said}.*remove {work} to start anew, or choose another output"):
            check(work, FACTS)
    remove_unstarted(work)
    assert {path.name: path.read_bytes() for path in work.iterdir()} == before
    shutil.rmtree(work)  # what the message says
    assert open_journal(work, FACTS).pieces() == ()


def test_without_a_piece_there_is_nothing_to_resume(tmp_path: Path) -> None:
    for facts in (FACTS, {"recipe": {"weights": 3}}):
        assert open_journal(tmp_path / "work", facts).pieces() == ()
    (tmp_path / "work" / FINGERPRINT).write_bytes(b"")
    open_journal(tmp_path / "work", FACTS).write("a", {"x": torch.ones(1)})
    assert open_journal(tmp_path / "work", FACTS).pieces() == ("a",)
    (tmp_path / "work" / "a.piece").unlink()
    remove_unstarted(tmp_path / "work")
    assert list(tmp_path.iterdir()) == []


def test_work_is_removed_if_its_result_is_in_place(work: Path, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("result", encoding="utf-8")
    mark_saved(work, tmp_path / "new")
    remove_saved(work, tmp_path / "result")
    assert open_journal(work, FACTS).pieces() == ("a", "b")
    (tmp_path / "result").write_text("an older one", encoding="utf-8")
    remove_saved(work, tmp_path / "result")
    assert work.exists()
    (tmp_path / "new").replace(tmp_path / "result")
    remove_saved(work, tmp_path / "result")
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_temporary_files_of_killed_processes_are_removed_and_nobody_elses(work: Path) -> None:
    kept = {"a.piece", "b.piece", FINGERPRINT, "film.mp4.part", ".film.part", "mine.offload"}
    for name in (".c.piece.12-34.part", "tmpabc.offload", "film.mp4.part", ".film.part", "mine.offload"):
        (work / name).touch()
    remove_temporary(work)
    assert {path.name for path in work.iterdir()} == kept
