"""Single-file form of an artifact: all its files in one safetensors file, whose metadata has the manifest.

Tensors keep their names, preceded by their component: ``unet.conv_in.weight``. The header of each weight file is kept
as text, so that unpacking gives back the same bytes and thus the same hashes. A file that is no text, such as a
sentencepiece model, is a tensor of bytes under its path.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec

from bitbrush.artifact.documents import ArtifactError, DamagedError, parse, read_whole, require_schema
from bitbrush.artifact.folder import CARD, MANIFEST, WEIGHT_SUFFIX, require_known_names
from bitbrush.artifact.tensor_file import Entry, TensorFile, parse_header, require_gapless
from bitbrush.session.disk import require_space

MANIFEST_KEY, DOCUMENTS_KEY, HEADERS_KEY = "bitbrush.manifest", "bitbrush.documents", "bitbrush.headers"
_CHUNK = 16 << 20
_ALIGNMENT = 8


def is_single_file(source: str | os.PathLike[str]) -> bool:
    """Tells whether a path is that of a single file, of whatever content."""
    return os.fspath(source).endswith(WEIGHT_SUFFIX) and Path(source).is_file()


def packed_manifest(path: Path) -> bytes:
    """Returns the manifest in the metadata of a single file.

    Raises:
        ArtifactError: The file is no single-file artifact.
    """
    manifest = TensorFile(path).metadata.get(MANIFEST_KEY)
    if manifest is None:
        raise ArtifactError(f"{path} is no bitbrush artifact: its header has no {MANIFEST_KEY}")
    return manifest.encode()


def pack(root: Path, path: Path) -> None:
    """Writes the files of an artifact's folder into one file.

    Args:
        root: Folder of the artifact, which is not changed.
        path: File to write.
    """
    names = sorted(parse(read_whole(root / MANIFEST), root / MANIFEST)["files"])
    weights = [name for name in names if name.endswith(WEIGHT_SUFFIX)]
    texts = {name: _text(root / name) for name in [CARD, *names] if name not in weights and (root / name).is_file()}
    binary = [name for name, text in texts.items() if text is None]
    entries: dict[str, Entry] = {}
    headers, begin = {}, 0
    for name in weights:
        file = TensorFile(root / name)
        headers[name] = _header_text(root / name)
        entries |= _shifted(name, file.entries, begin)
        begin += _data_bytes(file.entries)
    for name in binary:
        size = (root / name).stat().st_size
        entries[name] = Entry("U8", [size], (begin, begin + size))
        begin += size
    metadata = {
        "format": "pt",
        MANIFEST_KEY: (root / MANIFEST).read_text(encoding="utf-8"),
        DOCUMENTS_KEY: json.dumps({name: text for name, text in texts.items() if text is not None}),
        HEADERS_KEY: json.dumps(headers),
    }
    header = msgspec.json.encode({"__metadata__": metadata, **entries})
    header += b" " * (-len(header) % _ALIGNMENT)
    with path.open("wb") as packed:
        packed.write(len(header).to_bytes(_ALIGNMENT, "little") + header)
        for name in weights:
            _append(root / name, TensorFile(root / name).begin, packed)
        for name in binary:
            _append(root / name, 0, packed)


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Unpacks a single file into a temporary folder, which has the files of the artifact that was packed.

    Args:
        path: Single file.

    Yields:
        The folder; it is removed at the end.

    Raises:
        ArtifactError: The file is none of an artifact, or its header contradicts itself. Errors inside that name the
            temporary folder name the file instead.
        DiskError: The disk has too little space for the copy.
    """
    contents = _contents(path)
    with tempfile.TemporaryDirectory(prefix="bitbrush-", ignore_cleanup_errors=True) as folder:
        root = Path(folder).resolve()
        require_space(root, path.stat().st_size, "that unpacking it takes")
        try:
            for name, write in contents.items():
                (root / name).parent.mkdir(exist_ok=True)
                write(root / name)
            yield root
        except ArtifactError as error:
            raise ArtifactError(str(error).replace(str(root), str(path))) from error


def extracting(path: Path, name: str, digest: str) -> Callable[[Path], None]:
    """Returns a function that writes a file of a single-file artifact, and refuses it if its SHA-256 differs."""

    def write(target: Path) -> None:
        if not path.is_file():
            raise ValueError(f"{path}, from which the denoiser was loaded, is gone; load it again to save it")
        found = _contents(path).get(name)
        if found is not None:
            found(target)
        if found is None or hashlib.sha256(target.read_bytes()).hexdigest() != digest:
            raise ArtifactError(f"{path} changed since the denoiser was loaded; load it again to save it")

    return write


def _contents(path: Path) -> dict[str, Callable[[Path], Any]]:
    """Returns a function for each file of a single-file artifact that writes it, after checks of all names."""
    file = TensorFile(path)
    manifest = packed_manifest(path)
    documents = _table(file, DOCUMENTS_KEY, path)
    headers = _table(file, HEADERS_KEY, path)
    listed = {name for name in file.entries if "/" in name}
    require_known_names(path, [*headers, *documents, *listed])
    contents: dict[str, Callable[[Path], Any]] = {MANIFEST: lambda target: target.write_bytes(manifest)}
    for name, text in documents.items():
        contents[name] = _writing(text.encode())
    expected: dict[str, Entry] = {}
    begin = 0
    for name, text in headers.items():
        entries, _ = parse_header(text.encode(), path)
        size = _data_bytes(entries)
        require_gapless(path, entries, size)
        expected |= _shifted(name, entries, begin)
        length = len(text.encode()).to_bytes(_ALIGNMENT, "little")
        contents[name] = _slicing(path, length + text.encode(), file.begin + begin, size)
        begin += size
    for name in listed:
        first, last = file.entries[name].data_offsets
        contents[name] = _slicing(path, b"", file.begin + first, last - first)
    if expected != {name: entry for name, entry in file.entries.items() if name not in listed}:
        raise DamagedError(path, "its header is not that of the files in it")
    return contents


def _table(file: TensorFile, key: str, path: Path) -> dict[str, str]:
    text = file.metadata.get(key, "")
    table: dict[str, str] = require_schema(parse(text.encode(), path), dict[str, str], f"{path}, {key}")
    return table


def _shifted(name: str, entries: Mapping[str, Entry], begin: int) -> dict[str, Entry]:
    """Returns the entries of a weight file under the names and positions that they have in the single file."""
    component = name.partition("/")[0]
    return {
        f"{component}.{key}": Entry(
            entry.dtype, entry.shape, (entry.data_offsets[0] + begin, entry.data_offsets[1] + begin)
        )
        for key, entry in entries.items()
    }


def _data_bytes(entries: Mapping[str, Entry]) -> int:
    return max((entry.data_offsets[1] for entry in entries.values()), default=0)


def _header_text(path: Path) -> str:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_ALIGNMENT), "little")
        return file.read(length).decode()


def _text(path: Path) -> str | None:
    """Returns the content of a document; None for one that is no text."""
    content = read_whole(path)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def _append(path: Path, begin: int, packed: IO[bytes]) -> None:
    with path.open("rb") as file:
        file.seek(begin)
        while chunk := file.read(_CHUNK):
            packed.write(chunk)


def _writing(content: bytes) -> Callable[[Path], Any]:
    return lambda target: target.write_bytes(content)


def _slicing(path: Path, header: bytes, begin: int, size: int) -> Callable[[Path], Any]:
    """Returns a function that writes ``header`` and then ``size`` bytes of the file from ``begin``."""

    def write(target: Path) -> None:
        with path.open("rb") as file, target.open("wb") as part:
            part.write(header)
            file.seek(begin)
            for place in range(0, size, _CHUNK):
                part.write(file.read(min(_CHUNK, size - place)))

    return write
