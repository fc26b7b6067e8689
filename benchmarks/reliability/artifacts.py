"""Artifacts made by hand: every way in which a folder is not what an artifact should be, and a few that are harmless.

    python -m benchmarks.reliability.artifacts           # 300 cases, about two minutes on two cores

Changes are hashed anew where an attacker would do so: the hash check then hides nothing. A case of a wrong kind must
end in an ArtifactError whatever it does to the image; a harmless one must load and give the same image.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.reliability.folders import (
    ADAPTERS,
    CODE,
    DENOISER,
    FOREIGN,
    OTHERS,
    PICKLES,
    Change,
    beside,
    bits,
    card,
    files_entry,
    flipped,
    folder_link,
    hub_cache,
    irregular,
    large,
    line_ends,
    missing,
    shards,
)
from benchmarks.reliability.trial import OTHER, REFUSED, SAME, SILENT, TRACEBACK, Tamper, rehash, run, seed_of

CASES, SEED = 300, 0


def edited(name: str, change: Callable[[dict[str, torch.Tensor], random.Random], None]) -> Change:
    """Changes the tensors of a file and hashes it anew."""

    def apply(folder: Path, draw: random.Random) -> None:
        tensors = load_file(folder / name)
        change(tensors, draw)
        save_file({key: one.contiguous() for key, one in tensors.items()}, folder / name, metadata={"format": "pt"})
        _follow(folder)

    return apply


def _follow(folder: Path) -> None:
    """Lets hashes and recorded sizes follow a change."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["denoiser"]["bytes"] = (folder / DENOISER).stat().st_size
    path.write_text(json.dumps(manifest), encoding="utf-8")
    rehash(folder)


def _key(tensors: dict[str, torch.Tensor], draw: random.Random, ending: str) -> str:
    return draw.choice(sorted(key for key in tensors if key.endswith(ending)))


def value(ending: str, *values: float) -> Callable[[dict[str, torch.Tensor], random.Random], None]:
    """Sets one element of a tensor whose name ends so."""

    def change(tensors: dict[str, torch.Tensor], draw: random.Random) -> None:
        key = _key(tensors, draw, ending)
        tensors[key].view(-1)[draw.randrange(tensors[key].numel())] = draw.choice(values)

    return change


def float_value(*values: float) -> Callable[[dict[str, torch.Tensor], random.Random], None]:
    """Sets one element of any floating-point tensor."""

    def change(tensors: dict[str, torch.Tensor], draw: random.Random) -> None:
        key = draw.choice(sorted(key for key, one in tensors.items() if one.is_floating_point() and one.numel()))
        tensors[key].view(-1)[draw.randrange(tensors[key].numel())] = draw.choice(values)

    return change


def remade(make: Callable[[torch.Tensor], torch.Tensor], ending: str = "") -> Any:
    """Replaces a tensor by what is made of it."""

    def change(tensors: dict[str, torch.Tensor], draw: random.Random) -> None:
        key = _key(tensors, draw, ending)
        tensors[key] = make(tensors[key])

    return change


def _shorter(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flatten()[:-1] if tensor.numel() > 1 else torch.zeros(3, dtype=tensor.dtype)


def _dtype(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.int32 if tensor.is_floating_point() else torch.float32)


def _lost(tensors: dict[str, torch.Tensor], draw: random.Random) -> None:
    del tensors[draw.choice(sorted(tensors))]


def _more(tensors: dict[str, torch.Tensor], draw: random.Random) -> None:
    key = draw.choice(sorted(tensors))
    tensors[draw.choice(["extra", f"{key}.extra", f"{key.rpartition('.')[0]}.lora_A.weight"])] = torch.zeros(2)


def _renamed(tensors: dict[str, torch.Tensor], draw: random.Random) -> None:
    key = draw.choice(sorted(tensors))
    tensors[f"{key}_"] = tensors.pop(key)


def _unlike_swapped(tensors: dict[str, torch.Tensor], draw: random.Random) -> None:
    first = _key(tensors, draw, ".weight_scale")
    second = draw.choice(sorted(key for key, one in tensors.items() if one.shape != tensors[first].shape))
    tensors[first], tensors[second] = tensors[second], tensors[first]


def _alike_swapped(tensors: dict[str, torch.Tensor], draw: random.Random) -> None:
    shapes: dict[Any, list[str]] = {}
    for key in sorted(tensors):
        if key.endswith(".weight_scale"):
            shapes.setdefault(tuple(tensors[key].shape), []).append(key)
    first, second = draw.sample(draw.choice([keys for keys in shapes.values() if len(keys) > 1]), 2)
    tensors[first], tensors[second] = tensors[second], tensors[first]


def _timesteps(tensors: dict[str, torch.Tensor], draw: random.Random) -> None:
    key = _key(tensors, draw, ".activation_timesteps")
    change = draw.choice([lambda x: x.flip(0), lambda x: x[:1].expand(len(x)), lambda x: x * float("nan")])
    tensors[key] = change(tensors[key]).clone()


def header(change: Callable[[dict[str, Any], random.Random], Any]) -> Change:
    """Changes a safetensors header and keeps the data behind it."""

    def apply(folder: Path, draw: random.Random) -> None:
        path = folder / draw.choice([DENOISER, *OTHERS])
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        entries = json.loads(content[8 : 8 + length])
        fresh = change(entries, draw)
        text = fresh if isinstance(fresh, bytes) else json.dumps(entries).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
        _follow(folder)

    return apply


def _any_entry(entries: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    named = sorted(key for key, one in entries.items() if key != "__metadata__" and one["data_offsets"][1])
    entry: dict[str, Any] = entries[draw.choice(named)]
    return entry


def _overlap(entries: dict[str, Any], draw: random.Random) -> None:
    entry, size = _any_entry(entries, draw), 0
    begin, end = entry["data_offsets"]
    size = end - begin
    entry["data_offsets"] = [max(0, begin - size), max(0, begin - size) + size] if begin else [size, 2 * size]


def _beyond(entries: dict[str, Any], draw: random.Random) -> None:
    entry = _any_entry(entries, draw)
    entry["data_offsets"] = draw.choice([[2**40, 2**41], [-4, 0], [2**63, 2**64], [8, 4], ["0", "4"], [0], 5])


def _shape(entries: dict[str, Any], draw: random.Random) -> None:
    _any_entry(entries, draw)["shape"] = draw.choice([[2**31, 2**31], [-1], ["3"], [1.5], 7, [[1]], [0], [2**64]])


def _entry_dtype(entries: dict[str, Any], draw: random.Random) -> None:
    _any_entry(entries, draw)["dtype"] = draw.choice(["F128", "f32", "", None, 5, "object"])


def _broken_header(entries: dict[str, Any], draw: random.Random) -> bytes:
    text = json.dumps(entries)
    return draw.choice([text[:-5], "[" * 10_000, "null", "[]", "", text.replace("{", '{"a": NaN, ', 1)]).encode()


def length_lie(folder: Path, draw: random.Random) -> None:
    path = folder / draw.choice([DENOISER, *OTHERS])
    content = path.read_bytes()
    path.write_bytes(draw.choice([0, 1, 2**40, 2**63, 2**64 - 1]).to_bytes(8, "little") + content[8:])
    _follow(folder)


def cut(folder: Path, draw: random.Random) -> None:
    path = folder / draw.choice([DENOISER, *OTHERS])
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])
    _follow(folder)


def longer(folder: Path, draw: random.Random) -> None:
    path = folder / draw.choice([DENOISER, *OTHERS])
    path.write_bytes(path.read_bytes() + bytes(draw.choice([1, 8, 4096])))
    _follow(folder)


NAN, INF = float("nan"), float("inf")
HARMLESS: dict[str, Change] = {"card, licence and git": card, "line ends": line_ends, "the hub's cache": hub_cache}
ANOTHER: dict[str, Change] = {"tensors of one shape swapped": edited(DENOISER, _alike_swapped)}
"""Valid artifacts, which only the digest tells from the original."""
WRONG: dict[str, Change] = {
    "NaN or infinity in the denoiser": edited(DENOISER, float_value(NAN, INF, -INF)),
    "NaN or infinity in another network": edited(OTHERS[0], float_value(NAN, INF, -INF)),
    "NaN or infinity in the text encoder": edited(OTHERS[1], float_value(NAN, INF, -INF)),
    "NaN in an excluded weight": edited(DENOISER, value(".attn2.to_k.weight", NAN)),
    "scale of a weight": edited(DENOISER, value(".weight_scale", 0.0, -1.0, NAN, INF)),
    "scale of an activation": edited(DENOISER, value(".activation_scale", 0.0, -1e-3, NAN, INF)),
    "zero point of a weight": edited(DENOISER, value("attn1.to_q.weight_zero_point", 16, 200, 255)),
    "zero point of an activation": edited(DENOISER, value("attn1.to_q.activation_zero_point", -1, 256, 2**31 - 1)),
    "bits of an activation": edited(DENOISER, value(".activation_bits", 0, 1, 17, 255)),
    "timesteps unsorted, equal or NaN": edited(DENOISER, _timesteps),
    "shape of a quantized tensor": edited(DENOISER, remade(_shorter, "weight_scale")),
    "shape of a zero point": edited(DENOISER, remade(lambda x: x[:, None][:, :0], "weight_zero_point")),
    "shape of packed integers": edited(DENOISER, remade(_shorter, "to_q.weight")),
    "shape of an activation tensor": edited(DENOISER, remade(_shorter, "activation_bits")),
    "shape of a bias": edited(DENOISER, remade(_shorter, ".bias")),
    "shape in another network": edited(OTHERS[0], remade(_shorter)),
    "dtype of a tensor": edited(DENOISER, remade(_dtype)),
    "dtype in another network": edited(OTHERS[0], remade(_dtype)),
    "tensor missing": edited(DENOISER, _lost),
    "tensor missing in another network": edited(OTHERS[0], _lost),
    "tensor added": edited(DENOISER, _more),
    "tensor added in another network": edited(OTHERS[0], _more),
    "tensor renamed": edited(DENOISER, _renamed),
    "tensors of two shapes swapped": edited(DENOISER, _unlike_swapped),
    "header: overlap": header(_overlap),
    "header: offsets": header(_beyond),
    "header: shape": header(_shape),
    "header: dtype": header(_entry_dtype),
    "header: no table": header(_broken_header),
    "header: length": length_lie,
    "file cut": cut,
    "bytes behind the tensors": longer,
    "a bit flipped": flipped,
    "file missing": missing,
    "files of the manifest": files_entry,
    "code beside": beside(*CODE),
    "code listed": beside(*CODE, listed=True),
    "pickle beside": beside(*PICKLES),
    "pickle listed": beside(*PICKLES, listed=True),
    "adapter beside": beside(*ADAPTERS),
    "adapter listed": beside(*ADAPTERS, listed=True),
    "foreign file": beside(*FOREIGN),
    "FIFO, link or folder": irregular,
    "folder that is a link": folder_link,
    "shards": shards,
    "document too large": large,
    "weight bits": bits,
}
KINDS = {**WRONG, **ANOTHER, **HARMLESS}


def case(number: int, seed: int) -> tuple[str, Tamper]:
    """Returns the kind of a case, in turn, and what it does to an artifact."""
    kind = list(KINDS)[number % len(KINDS)]

    def tamper(folder: Path) -> None:
        KINDS[kind](folder, random.Random(seed_of(seed, number)))

    return kind, tamper


def judge(kind: str, outcome: str) -> str:
    """Returns the outcome, where it is not what the kind of case must come to: a refusal counts as a traceback then."""
    if kind in WRONG and outcome in (SAME, OTHER):
        return SILENT
    if kind in HARMLESS and outcome == REFUSED:
        return TRACEBACK
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--seed", type=int, default=SEED)
    chosen = parser.parse_args()
    cases = [case(number, chosen.seed) for number in range(chosen.cases)]
    sys.exit(run("artifacts", cases, {"cases": chosen.cases, "seed": chosen.seed}, judge) > 0)


if __name__ == "__main__":
    main()
