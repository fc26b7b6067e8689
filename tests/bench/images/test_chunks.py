"""Chunks: computed once, by whichever process, with the same result."""

from pathlib import Path

import numpy as np
import pytest

from bitbrush.bench.images.chunks import CHUNK, compute_chunks, read_chunks
from bitbrush.session.progress import silent
from bitbrush.session.ranks import Ranks

COUNT = 2 * CHUNK + 5


def compute(directory: Path, ranks: Ranks, count: int = COUNT) -> list[range]:
    """Squares of the indices; gives the chunks that were loaded."""
    loaded: list[range] = []

    def load(chunk: range) -> range:
        loaded.append(chunk)
        return chunk

    def squares(chunk: range) -> np.ndarray:
        return np.array([[index**2] for index in chunk])

    compute_chunks(directory, count, load, squares, phase="squares", ranks=ranks, progress=silent)
    return loaded


def test_all_are_there_in_order(tmp_path: Path) -> None:
    compute(tmp_path, Ranks())
    assert read_chunks(tmp_path, COUNT)[:, 0].tolist() == [index**2 for index in range(COUNT)]


def test_what_is_there_is_not_computed_again(tmp_path: Path) -> None:
    assert len(compute(tmp_path, Ranks())) == 3
    assert compute(tmp_path, Ranks()) == []
    next(tmp_path.glob("000032*")).unlink()
    assert compute(tmp_path, Ranks()) == [range(32, 64)]


def test_processes_share_the_work_without_overlap(tmp_path: Path) -> None:
    shares = [compute(tmp_path, Ranks(rank, 3)) for rank in range(3)]
    assert sorted(chunk.start for share in shares for chunk in share) == [0, 32, 64]
    assert all(len(share) == 1 for share in shares)
    assert read_chunks(tmp_path, COUNT).shape == (COUNT, 1)


def test_more_pictures_use_the_full_chunks_again(tmp_path: Path) -> None:
    compute(tmp_path, Ranks())
    assert compute(tmp_path, Ranks(), COUNT + 1) == [range(64, 70)]


def test_a_failure_is_raised_and_leaves_the_finished_ones(tmp_path: Path) -> None:
    def load(chunk: range) -> range:
        if chunk.start == 32:
            raise OSError("the disk is gone")
        return chunk

    with pytest.raises(OSError, match="the disk is gone"):
        compute_chunks(tmp_path, COUNT, load, lambda c: np.array(c), phase="x", ranks=Ranks(), progress=silent)
    assert compute(tmp_path, Ranks()) == [range(32, 64), range(64, 69)]
