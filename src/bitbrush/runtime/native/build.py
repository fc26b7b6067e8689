"""Compiles the kernels of this folder on the machine they are to run on, once, and loads them."""

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
    """The native kernels cannot be had on this machine; torch's operators do the same, several times slower."""


@functools.cache
def native_library() -> ctypes.CDLL:
    """The kernels of all ``.cpp`` files beside this one; compiled at first (seconds) and then found in the cache.

    The cache is ``$BITBRUSH_CACHE``, else ``bitbrush`` in ``$XDG_CACHE_HOME`` or ``~/.cache``. Raises
    NativeUnavailable, telling what is missing, if there is no compiler, or it fails.
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
    """Of all that decides the result: sources, flags, the compiler's version and what -march=native is to it."""
    target = subprocess.run(
        [compiler, "-march=native", "-E", "-dM", "-x", "c++", os.devnull], capture_output=True, check=False
    )
    digest = hashlib.sha256(" ".join((*FLAGS, compiler, platform.machine())).encode() + target.stdout)
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:20]


def _compile(compiler: str, sources: list[Path], target: Path) -> None:
    """Beside its place, then moved there: another process may be doing the same."""
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
    """torch's own OpenMP library: a second one would have threads of its own, which wait for work on the same cores."""
    return [str(path) for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))]
