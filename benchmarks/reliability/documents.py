"""Mutated documents: manifest, configurations, indices and tokenizer files, with and without new hashes.

    python -m benchmarks.reliability.documents           # 2,000 cases, about ten minutes on two cores
    python -m benchmarks.reliability.documents --cases 50

Every case changes one document of a tiny artifact, then loads it and generates an image. New hashes take the change
past the check of hashes; such an artifact has another digest, which `bitbrush verify --sha256` tells. Nothing may end
in a traceback, take ten seconds, or show another image under the original's digest.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.reliability.trial import Tamper, rehash, run, seed_of

CASES, SEED = 2000, 0
DOCUMENTS = {
    "manifest.json": 5,
    "model_index.json": 3,
    "unet/config.json": 4,
    "vae/config.json": 3,
    "text_encoder/config.json": 3,
    "scheduler/scheduler_config.json": 4,
    "tokenizer/tokenizer_config.json": 2,
    "tokenizer/tokenizer.json": 2,
    "tokenizer/vocab.json": 1,
    "tokenizer/merges.txt": 1,
}
"""Documents and how often each is drawn."""
RAW = "\0raw\0"
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 10**6, 10**9, 2**31, 2**63, 10**30, -(10**9), 0.5, -0.5, 1e-300, 1e300,
    "", "a", "0", "NaN", "null", "../..", "/etc/passwd", "torch", "os", "bitbrush", "é\u0000\u202e", "x" * 10_000,
    [], {}, [1], [[1]], [None], [1, "a"], {"a": 1}, [0] * 5000,
)  # fmt: skip
LITERALS = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "9" * 5000,
    "1.5e-400",
    '"\\ud800"',
    '"\\u0000"',
    "01",
    "0x10",
    "'a'",
)
"""JSON texts that no value of Python writes."""


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the paths of a document's values; of long lists and tables, the first and last few."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    else:
        return [path] if path else []
    few = keys if len(keys) <= 60 else [*keys[:20], *keys[-20:]]
    return ([path] if path else []) + [place for key in few for place in places(value[key], (*path, key))]


def parent_of(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        document = document[key]
    return document


def replaced(text: str, draw: random.Random) -> str:
    return _edited(text, draw, lambda parent, key: parent.__setitem__(key, draw.choice(VALUES)))


def deleted(text: str, draw: random.Random) -> str:
    return _edited(text, draw, lambda parent, key: parent.__delitem__(key))


def retyped(text: str, draw: random.Random) -> str:
    def change(parent: Any, key: Any) -> None:
        value = parent[key]
        parent[key] = draw.choice([[value], {"value": value}, str(value), None, [value, value], bool(value)])

    return _edited(text, draw, change)


def scaled(text: str, draw: random.Random) -> str:
    def change(parent: Any, key: Any) -> None:
        value, factor = parent[key], draw.choice([-1, 0, 2, 3, 1000, 10**12, 0.5, 1e200])
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        try:
            parent[key] = value * factor if is_number else factor
        except OverflowError:
            parent[key] = 1e308

    return _edited(text, draw, change)


def added(text: str, draw: random.Random) -> str:
    names = ("extra", "auto_map", "_attn_implementation", "quantization_config", "custom_pipeline", "dtype", "_module")

    def change(parent: Any, key: Any) -> None:
        if isinstance(parent, dict):
            parent[draw.choice(names)] = draw.choice(VALUES)
        else:
            parent.append(draw.choice(VALUES))

    return _edited(text, draw, change)


def renamed(text: str, draw: random.Random) -> str:
    def change(parent: Any, key: Any) -> None:
        if isinstance(parent, dict):
            parent[f"{key}{draw.choice(['_', 'x', chr(233), ' '])}"] = parent.pop(key)
        else:
            parent.reverse()

    return _edited(text, draw, change)


def literal(text: str, draw: random.Random) -> str:
    marked = _edited(text, draw, lambda parent, key: parent.__setitem__(key, RAW))
    return marked.replace(json.dumps(RAW), draw.choice(LITERALS))


def nested(text: str, draw: random.Random) -> str:
    depth = draw.choice([33, 200, 100_000])
    marked = _edited(text, draw, lambda parent, key: parent.__setitem__(key, RAW))
    return marked.replace(
        json.dumps(RAW), draw.choice(["[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth])
    )


def doubled(text: str, draw: random.Random) -> str:
    """Writes a key a second time, with another value, into some table."""

    def change(parent: Any, key: Any) -> None:
        if isinstance(parent, dict):
            parent[RAW] = [key, draw.choice(VALUES[:20])]

    document = json.loads(_edited(text, draw, change))

    def written(value: Any) -> str:
        if isinstance(value, dict):
            pairs = [tuple(one) if key == RAW else (key, one) for key, one in value.items()]
            return "{" + ", ".join(f"{json.dumps(key)}: {written(one)}" for key, one in pairs) + "}"
        return "[" + ", ".join(map(written, value)) + "]" if isinstance(value, list) else json.dumps(value)

    return written(document)


def truncated(text: str, draw: random.Random) -> str:
    return text[: draw.randrange(len(text))]


def flipped(text: str, draw: random.Random) -> bytes:
    content = bytearray(text.encode())
    for _ in range(draw.choice([1, 1, 3, 20])):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(content)


def foreign(text: str, draw: random.Random) -> bytes | str:
    others = (b"", b"\xff\xfe\x00", text.encode("utf-16"), b"\xef\xbb\xbf" + text.encode(), b"null", b"[]", b"{}")
    return draw.choice([*others, b'"text"', b"\x80\x04\x95", b"PK\x03\x04", text + text, f"{text}\0"])


MUTATIONS: tuple[Callable[[str, random.Random], str | bytes], ...] = (
    replaced, replaced, deleted, retyped, scaled, added, renamed, literal, nested, doubled, truncated, flipped, foreign,
)  # fmt: skip
OF_TEXT = (truncated, flipped, foreign)


def _edited(text: str, draw: random.Random, change: Callable[[Any, Any], None]) -> str:
    document = json.loads(text)
    path = draw.choice(places(document))
    change(parent_of(document, path), path[-1])
    return json.dumps(document)


def case(number: int, seed: int) -> tuple[str, Tamper]:
    """Returns the kind of a case and what it does to an artifact; both depend on the arguments alone."""
    draw = random.Random(seed_of(seed, number))
    name = draw.choices(list(DOCUMENTS), list(DOCUMENTS.values()))[0]
    mutation = draw.choice(OF_TEXT if name.endswith(".txt") else MUTATIONS)
    hashed = name != "manifest.json" and draw.random() < 0.75

    def tamper(folder: Path) -> None:
        path = folder / name
        content = mutation(path.read_text(encoding="utf-8"), draw)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        if hashed:
            rehash(folder)

    return f"{name}, {mutation.__name__}{', new hashes' if hashed else ''}", tamper


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--seed", type=int, default=SEED)
    chosen = parser.parse_args()
    cases = [case(number, chosen.seed) for number in range(chosen.cases)]
    failures = run("documents", cases, {"cases": chosen.cases, "seed": chosen.seed}, lambda _, outcome: outcome)
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
