"""Sprites of the Fluent Emoji: fetched with `npm pack`, read and scaled with Pillow.

The pictures are Microsoft's Fluent Emoji (MIT licence, see NOTICE) as packed by `@lobehub/fluent-emoji-3d`;
`emojibase-data` tells which code point carries which name. They are never committed to the repository.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.emoji.scenes import OBJECTS, Size, Sprites


@dataclass(frozen=True)
class NpmPackage:
    """A package at one version, with the SHA-256 of its tarball."""

    name: str
    version: str
    sha256: str


FLUENT_EMOJI = NpmPackage(
    name="@lobehub/fluent-emoji-3d",
    version="1.1.0",
    sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
)
EMOJIBASE = NpmPackage(
    name="emojibase-data",
    version="17.0.0",
    sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
)

# The captions' names of objects that Unicode calls otherwise.
_UNICODE_NAMES: Mapping[str, str] = {
    **{name: f"{name} face" for name in ("dog", "cat", "tiger", "pig", "cow", "monkey", "rabbit")},
    "ladybug": "lady beetle",
    "bee": "honeybee",
    "airplane": "airplane departure",
    "umbrella": "umbrella with rain drops",
    "sun": "sun with face",
    "gift": "wrapped gift",
    "christmas tree": "Christmas tree",
    "pumpkin": "jack-o-lantern",
    "diamond": "gem stone",
}


def fetch_sprites(directory: Path) -> None:
    """Write `<object>.webp` for every object of the world into `directory`.

    Needs the program `npm`, which asks whichever registry the user has configured.
    Raises RuntimeError where npm is missing or fails, and ValueError where a tarball is not the expected one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as temporary:
        names = _pack(EMOJIBASE, Path(temporary))
        pictures = _pack(FLUENT_EMOJI, Path(temporary))
        with tarfile.open(names) as archive:
            entries = json.loads(_read(archive, "package/en/data.json"))
        hexcodes = {entry["label"]: entry["hexcode"].lower() for entry in entries}
        with tarfile.open(pictures) as archive:
            available = set(archive.getnames())
            for name in OBJECTS:
                member = _picture_member(hexcodes[_UNICODE_NAMES.get(name, name)], available)
                _sprite_path(directory, name).write_bytes(_read(archive, member))


def load_sprites(directory: Path) -> Sprites:
    """The sprites that `fetch_sprites` wrote, in every size. Raises FileNotFoundError where one is missing."""
    images: dict[str, Image.Image] = {}
    for name in OBJECTS:
        path = _sprite_path(directory, name)
        if not path.is_file():
            raise FileNotFoundError(f"no sprite {path}; fetch them with `python -m training.emoji sprites`")
        with Image.open(path) as image:
            images[name] = image.convert("RGBA")
    return scale_sprites(images)


def scale_sprites(images: Mapping[str, Image.Image]) -> Sprites:
    """Every RGBA image in every `Size`, by Lanczos resampling."""
    return {(name, size): _scaled(image, size.pixels) for name, image in images.items() for size in Size}


def _scaled(image: Image.Image, pixels: int) -> NDArray[np.float32]:
    small = image.resize((pixels, pixels), Image.Resampling.LANCZOS)
    return np.asarray(small, np.float32) / np.float32(255)


def _sprite_path(directory: Path, name: str) -> Path:
    return directory / f"{name.replace(' ', '-')}.webp"


def _picture_member(hexcode: str, available: set[str]) -> str:
    """Path of an emoji's picture in the tarball. The two packages differ on the variation selector U+FE0F."""
    for code in (hexcode, hexcode.replace("-fe0f", "")):
        member = f"package/assets/{code}.webp"
        if member in available:
            return member
    raise ValueError(f"{FLUENT_EMOJI.name} {FLUENT_EMOJI.version} has no picture of code point {hexcode}")


def _pack(package: NpmPackage, directory: Path) -> Path:
    """Tarball of the package, downloaded by npm into `directory` and checked."""
    command = ["npm", "pack", f"{package.name}@{package.version}", "--silent", "--pack-destination", str(directory)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise RuntimeError("the program npm was not found; install Node.js, which brings it") from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"`{' '.join(command)}` failed: {error.stderr.strip()}") from error
    tarball = directory / result.stdout.split()[-1]
    found = hashlib.sha256(tarball.read_bytes()).hexdigest()
    if found != package.sha256:
        raise ValueError(f"{tarball.name} has SHA-256 {found}, expected {package.sha256}; do not use it")
    return tarball


def _read(archive: tarfile.TarFile, member: str) -> bytes:
    file = archive.extractfile(member)
    if file is None:
        raise ValueError(f"{member} of {archive.name!r} is not a file")
    with file:
        return file.read()
