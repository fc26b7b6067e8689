"""Changes of an artifact's folder: files beside it, links, shards, other lists of files."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file

from benchmarks.reliability.trial import rehash

Change = Callable[[Path, random.Random], None]
DENOISER = "unet/diffusion_pytorch_model.safetensors"
OTHERS = ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")


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
