"""Numbers per image, computed in chunks by any process, stored on disk, and never computed twice."""

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bitbrush.session.disk import write_whole
from bitbrush.session.progress import Progress
from bitbrush.session.ranks import Ranks

T = TypeVar("T")

CHUNK = 32
"""Images in a chunk; fixed, so that sums over a batch do not depend on the number of processes."""


def chunks(count: int) -> list[range]:
    """Divides ``range(count)`` into ranges of CHUNK."""
    return [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]


def compute_chunks(
    directory: Path,
    count: int,
    load: Callable[[range], T],
    compute: Callable[[T], NDArray[Any]],
    *,
    phase: str,
    ranks: Ranks,
    progress: Progress,
) -> None:
    """Computes this process's share of the chunks that ``directory`` lacks.

    ``load`` runs in a thread one chunk ahead, so that decoding images costs no time beside a network.

    Args:
        directory: Folder of the chunks.
        count: Number of images.
        load: Function from the indices of a chunk to the input of ``compute``.
        compute: Function that returns the chunk's values, (n, ...).
        phase: Title of progress reports.
        ranks: Processes that share the work.
        progress: Callback that receives progress reports.
    """
    missing = [chunk for chunk in ranks.share(chunks(count)) if not _path(directory, chunk).exists()]
    if not missing:
        return
    with progress(phase, len(missing)) as advance:
        for chunk, loaded in _ahead(missing, load):
            buffer = io.BytesIO()
            np.save(buffer, compute(loaded), allow_pickle=False)
            write_whole(buffer.getvalue(), _path(directory, chunk))
            advance()


def read_chunks(directory: Path, count: int) -> NDArray[Any]:
    """Reads the values of all chunks, (count, ...).

    Raises:
        ValueError: A file is missing or damaged.
    """
    return np.concatenate([_read(_path(directory, chunk)) for chunk in chunks(count)])


def _read(path: Path) -> NDArray[Any]:
    try:
        values: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged or missing ({error}); delete it and run again") from error
    return values


def _path(directory: Path, chunk: range) -> Path:
    return directory / f"{chunk.start:06d}-{chunk.stop:06d}.npy"


def _ahead(pieces: Sequence[range], load: Callable[[range], T]) -> Iterator[tuple[range, T]]:
    with ThreadPoolExecutor(1) as executor:
        following = executor.submit(load, pieces[0])
        for index, piece in enumerate(pieces):
            current = following.result()
            if index + 1 < len(pieces):
                following = executor.submit(load, pieces[index + 1])
            yield piece, current
