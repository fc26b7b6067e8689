"""Compilation of this folder's kernels, once, on the machine that runs them."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

from bitbrush.runtime.native.cache import cache_folder, cached_library

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
COMPILERS = ("c++", "g++", "clang++")
SHOWN_LINES = 12


class NativeUnavailable(RuntimeError):
    """Error: the native kernels are unavailable here; torch's operators do the same, several times slower."""


@functools.cache
def native_library() -> ctypes.CDLL:
    """Loads the kernels of all ``.cpp`` files in this folder; the first call compiles them, which takes seconds.

    The cache is the folder ``kernels`` in ``$BITBRUSH_CACHE``, else in ``bitbrush`` below ``$XDG_CACHE_HOME`` or
    ``~/.cache``.

    Raises:
        NativeUnavailable: There is no compiler, or it fails; the message names what is missing.
    """
    sources = sorted(Path(__file__).parent.glob("*.cpp"))
    compiler = _compiler()
    folder = cache_folder(_cache())
    try:
        path = cached_library(folder, _key(sources, compiler), lambda target: _compile(compiler, sources, target))
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailable(
            f"the kernels cannot be written to {folder}, or not loaded from it ({error}); name another folder by "
            "BITBRUSH_CACHE, on a disk with free space from which programs may run"
        ) from error


def _compiler() -> str:
    for name in filter(None, (os.environ.get("CXX"), *COMPILERS)):
        found = shutil.which(name)
        if found:
            return found
    raise NativeUnavailable(
        f"no C++ compiler found (looked for $CXX, {', '.join(COMPILERS)}); install one, e.g. Debian's package g++"
    )


def _cache() -> Path:
    if own := os.environ.get("BITBRUSH_CACHE"):
        return Path(own) / "kernels"
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise NativeUnavailable(
            "this user has no home folder for the kernels' cache; name one by BITBRUSH_CACHE"
        ) from error
    return caches / "bitbrush" / "kernels"


def _key(sources: list[Path], compiler: str) -> str:
    """Digest of everything that decides the result: sources, flags, compiler and the meaning of -march=native."""
    target = subprocess.run(
        [compiler, "-march=native", "-E", "-dM", "-x", "c++", os.devnull], capture_output=True, check=False
    )
    digest = hashlib.sha256(" ".join((*FLAGS, compiler, platform.machine())).encode() + target.stdout)
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:20]


def _compile(compiler: str, sources: list[Path], target: Path) -> None:
    command = [compiler, *FLAGS, *map(str, sources), "-o", str(target), *_openmp()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join(done.stderr.splitlines()[-SHOWN_LINES:])
        raise NativeUnavailable(f"{compiler} failed on the kernels:\n{last}")


def _openmp() -> list[str]:
    """Paths of torch's own OpenMP library: the threads of a second one would compete for the same cores."""
    return [str(path) for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))]
