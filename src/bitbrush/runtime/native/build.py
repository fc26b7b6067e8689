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

from bitbrush.session.disk import writing_whole

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
COMPILERS = ("c++", "g++", "clang++")
SHOWN_LINES = 12


class NativeUnavailable(RuntimeError):
    """Error: the native kernels are unavailable here; torch's operators do the same, several times slower."""


@functools.cache
def native_library() -> ctypes.CDLL:
    """Loads the kernels of all ``.cpp`` files in this folder; the first call compiles them, which takes seconds.

    The cache is ``$BITBRUSH_CACHE``, else ``bitbrush`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        NativeUnavailable: There is no compiler, or it fails; the message names what is missing.
    """
    sources = sorted(Path(__file__).parent.glob("*.cpp"))
    compiler = _compiler()
    target = _cache() / f"kernels-{_key(sources, compiler)}.so"
    if not target.exists():
        _compile(compiler, sources, target)
    try:
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise NativeUnavailable(f"{target} cannot be loaded ({error}); remove it to have it compiled again") from error


def _compiler() -> str:
    for name in filter(None, (os.environ.get("CXX"), *COMPILERS)):
        found = shutil.which(name)
        if found:
            return found
    raise NativeUnavailable(
        f"no C++ compiler found (looked for $CXX, {', '.join(COMPILERS)}); install one, e.g. Debian's package g++"
    )


def _cache() -> Path:
    own = os.environ.get("BITBRUSH_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitbrush"


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
    """Compiles to a temporary file and renames it, since another process may compile at the same time."""
    try:
        with writing_whole(target) as made:
            command = [compiler, *FLAGS, *map(str, sources), "-o", str(made), *_openmp()]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                last = "\n".join(done.stderr.splitlines()[-SHOWN_LINES:])
                raise NativeUnavailable(f"{compiler} failed on the kernels:\n{last}")
    except OSError as error:
        raise NativeUnavailable(
            f"the kernels cannot be written to {target.parent} ({error}); name another folder by BITBRUSH_CACHE"
        ) from error


def _openmp() -> list[str]:
    """Paths of torch's own OpenMP library: the threads of a second one would compete for the same cores."""
    return [str(path) for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))]
