"""Peers by name; a package adds one with the entry point group ``bitbrush.peers``."""

import difflib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from bitbrush.bench.peers.peer import Peer

GROUP = "bitbrush.peers"
BUILT_IN = {
    "torchao": "bitbrush.bench.peers.torchao:TORCHAO",
    "quanto": "bitbrush.bench.peers.quanto:QUANTO",
    "sdnq": "bitbrush.bench.peers.sdnq:SDNQ",
    "gguf": "bitbrush.bench.peers.gguf:GGUF",
    "bnb": "bitbrush.bench.peers.bnb:BNB",
}


def peers() -> Mapping[str, Peer]:
    """Returns the built-in peers and those of installed packages by name."""
    built_in = [EntryPoint(name, place, GROUP) for name, place in BUILT_IN.items()]
    return {point.name: point.load() for point in (*entry_points(group=GROUP), *built_in)}


def names_peer(source: str) -> bool:
    """Whether a source is ``NAME:SCHEME`` of a known peer."""
    name, colon, _ = source.partition(":")
    return bool(colon) and name in peers()


def installed_peer(name: str, scheme: str) -> Peer:
    """Returns a peer that can be used here.

    Raises:
        ValueError: The scheme is unknown, or its file or the package is missing.
    """
    peer = peers()[name]
    if peer.schemes and scheme not in peer.schemes:
        known = ", ".join(f"{name}:{known}" for known in peer.schemes)
        raise ValueError(f"{name} has no scheme {scheme!r}; known are {known}{suggestion(scheme, peer.schemes)}")
    if not peer.schemes and not Path(scheme).is_file():
        raise ValueError(f"{name}:{scheme} needs a file, and there is none at {scheme!r}")
    if not _is_installed(peer.module):
        raise ValueError(f"{name}:{scheme} needs a package that is missing: pip install {peer.package}")
    return peer


def suggestion(name: str, known: Mapping[str, object]) -> str:
    """Returns a suggestion like ``; did you mean 'int8dq'?``, or nothing."""
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False
