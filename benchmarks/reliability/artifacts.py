"""Artifacts made by hand: every way in which a folder is not what an artifact should be, and a few that are harmless.

    python -m benchmarks.reliability.artifacts           # 300 cases, about two minutes on two cores

Changes are hashed anew where an attacker would do so: the hash check then hides nothing. A case of a wrong kind must
end in an ArtifactError whatever it does to the image; a harmless one must load and give the same image.
"""

import argparse
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.reliability.trial import OTHER, REFUSED, SAME, SILENT, TRACEBACK, Tamper, rehash, run, seed_of

CASES, SEED = 300, 0
DENOISER = "unet/diffusion_pytorch_model.safetensors"
OTHERS = ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")
Change = Callable[[Path, random.Random], None]


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


def beside(*names: str, listed: bool = False) -> Change:
    """Writes a file that does not belong there, and lists it if asked to."""

    def apply(folder: Path, draw: random.Random) -> None:
        path = folder / draw.choice(names)
        path.parent.mkdir(exist_ok=True)
        path.write_text("raise SystemExit('ran')\n", encoding="utf-8")
        if listed:
            rehash(folder)

    return apply


CODE = ("pipeline.py", "unet/unet.py", "unet/my_model.py", "scheduler/scheduler.py", "tokenizer/tokenization_x.py")
PICKLES = ("unet/diffusion_pytorch_model.bin", "vae/pytorch_model.bin", "text_encoder/model.pt", "unet/a.ckpt", "a.pkl")
ADAPTERS = ("unet/adapter_config.json", "text_encoder/adapter_model.safetensors", "pytorch_lora_weights.safetensors")
FOREIGN = (
    "notes.txt",
    "unet/.hidden",
    "unet/config.yaml",
    "more/config.json",
    "unet/config.json.bak",
    "manifest.json~",
)


def _kinds_of(path: Path, draw: random.Random, target: Path) -> None:
    kind = draw.choice(["fifo", "out", "dangling", "loop", "folder", "device"])
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"out": target, "dangling": "nowhere", "loop": path.name, "device": "/dev/zero"}[kind])


def irregular(folder: Path, draw: random.Random) -> None:
    """Replaces a file by a FIFO, a folder, or a link that leads out, nowhere, to itself or to a device."""
    names = ["manifest.json", "model_index.json", "unet/config.json", DENOISER, "tokenizer/vocab.json", *OTHERS]
    path = folder / draw.choice(names)
    outside = Path(shutil.copy(path, folder.parent / "outside"))
    _kinds_of(path, draw, outside)


def folder_link(folder: Path, draw: random.Random) -> None:
    name = draw.choice(["unet", "vae", "tokenizer"])
    shutil.move(folder / name, folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)


def files_entry(folder: Path, draw: random.Random) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    files = manifest["files"]
    name = draw.choice(sorted(files))
    change = draw.choice(["empty", "fewer", "more", "above", "absolute", "upper", "same"])
    if change == "empty":
        files.clear()
    elif change == "fewer":
        del files[name]
    elif change == "upper":
        files[name] = files[name].upper()
    elif change == "same":
        files[name] = "0" * 64
    else:
        extra = {"more": "unet/more.safetensors", "above": "../outside.json", "absolute": "/etc/passwd"}[change]
        files[extra] = files[name]
    path.write_text(json.dumps(manifest), encoding="utf-8")


def missing(folder: Path, draw: random.Random) -> None:
    name = draw.choice(sorted(json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]))
    (folder / name).unlink()
    if draw.random() < 0.5 and not name.startswith("tokenizer/"):  # a tokenizer needs only some of its files
        rehash(folder)


def flipped(folder: Path, draw: random.Random) -> None:
    name = draw.choice(sorted(json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]))
    content = bytearray((folder / name).read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    (folder / name).write_bytes(content)


def shards(folder: Path, draw: random.Random) -> None:
    """Adds shards that no index lists, or an index that contradicts its shards."""
    source = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(source)
    names = [source.with_name(f"diffusion_pytorch_model-0000{k}-of-00002.safetensors") for k in (1, 2)]
    keys = sorted(tensors)
    for path, part in zip(names, (keys[:10], keys[10:]), strict=True):
        save_file({key: tensors[key] for key in part}, path, metadata={"format": "pt"})
    places = {key: names[0 if key in keys[:10] else 1].name for key in keys}
    fault = draw.choice(["no index", "wrong file", "twice", "both", "out", "lost"])
    if fault == "wrong file":
        places[keys[0]] = names[1].name
    elif fault == "out":
        places[keys[0]] = "../unet/diffusion_pytorch_model.safetensors"
    elif fault == "lost":
        del places[keys[0]]
    elif fault == "twice":
        save_file({key: tensors[key] for key in keys[9:]}, names[1], metadata={"format": "pt"})
    if fault != "no index":
        index = {"metadata": {}, "weight_map": places}
        source.with_name(f"{source.name}.index.json").write_text(json.dumps(index), encoding="utf-8")
    if fault not in ("both", "no index"):
        source.unlink()
    rehash(folder)


def large(folder: Path, draw: random.Random) -> None:
    """A document of more bytes than any has, without writing them all."""
    path = folder / draw.choice(["manifest.json", "model_index.json", "vae/config.json", "tokenizer/vocab.json"])
    with path.open("r+b") as file:
        file.truncate(1 << 30)


def bits(folder: Path, draw: random.Random) -> None:
    """Other weight bits in configuration and manifest, which agree with each other."""
    config, manifest = folder / "unet" / "config.json", folder / "manifest.json"
    content, listed = (json.loads(path.read_text(encoding="utf-8")) for path in (config, manifest))
    packed = content["quantization_config"]["weight_bits"]
    name = draw.choice(sorted(packed))
    packed[name] = draw.choice([2, 3, 5, 9, 0, -1, 64])
    for layer in listed["layers"]:
        if layer["name"] == name:
            layer["weight_bits"] = packed[name]
    config.write_text(json.dumps(content), encoding="utf-8")
    manifest.write_text(json.dumps(listed), encoding="utf-8")
    rehash(folder)


def hub_cache(folder: Path, draw: random.Random) -> None:
    """Moves every file into ``blobs`` and links it, as the hub's cache does."""
    snapshot = folder.parent / "models--someone--quantized" / "snapshots" / ("0" * 40)
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(one for one in folder.rglob("*") if one.is_file())):
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, blobs / str(number))
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    shutil.rmtree(folder)
    folder.symlink_to(snapshot)


def card(folder: Path, draw: random.Random) -> None:
    path = folder / "README.md"
    path.write_text("edited", encoding="utf-8") if draw.random() < 0.5 else path.unlink()
    (folder / draw.choice(["LICENSE", ".gitattributes"])).write_text("text", encoding="utf-8")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("", encoding="utf-8")


def line_ends(folder: Path, draw: random.Random) -> None:
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".txt", ".md"):
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


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
