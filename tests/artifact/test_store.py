"""The artifact: what goes in comes out bit for bit, whole or not at all, and nothing altered goes unnoticed."""

import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from safetensors.torch import load_file

import bitbrush
from bitbrush import Quantization
from bitbrush.artifact import store, stored, writing
from bitbrush.artifact.manifest import ArtifactError, read_manifest
from bitbrush.artifact.store import (
    load,
    require_free,
    save,
    verify,
)
from bitbrush.session import replacing
from bitbrush.sources.identity import model_digest

WEIGHTS = Path("unet") / store.WEIGHTS


def image(pipe: StableDiffusionPipeline, *, steps: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe("a cat", num_inference_steps=steps, generator=generator, output_type="pt").images


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@contextmanager
def edited(root: Path) -> Iterator[dict[str, Any]]:
    """The manifest, to be changed in place."""
    manifest = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
    yield manifest
    (root / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize("steps", [3, 5])
def test_generates_the_same_images_bit_for_bit(quantization: Quantization, saved: Path, steps: int) -> None:
    here = image(quantization.pipeline(), steps=steps)
    assert torch.equal(image(load(saved, runtime="reference"), steps=steps), here)
    assert not torch.equal(image(quantization.source, steps=steps), here)


def test_generates_the_same_images_in_a_new_process(quantization: Quantization, saved: Path) -> None:
    code = (
        "import sys, hashlib, torch, bitbrush\n"
        "torch.set_num_threads(1)\n"
        "generator = torch.Generator().manual_seed(0)\n"
        "pipe = bitbrush.load(sys.argv[1], runtime='reference')\n"
        "image = pipe('a cat', num_inference_steps=3, generator=generator, output_type='np').images\n"
        "print(hashlib.sha256(image.tobytes()).hexdigest())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True, check=True)
    generator = torch.Generator().manual_seed(0)
    pipe = quantization.pipeline()
    here = pipe("a cat", num_inference_steps=3, generator=generator, output_type="np").images
    assert done.stdout.split()[-1] == hashlib.sha256(here.tobytes()).hexdigest()


def test_what_is_loaded_is_ready_to_use(saved: Path) -> None:
    pipe = load(saved, runtime="reference")
    assert not any(module.training for module in pipe.unet.modules())
    assert {tensor.dtype for tensor in (*pipe.unet.parameters(), *pipe.vae.parameters())} == {torch.float32}
    assert {tensor.device.type for tensor in pipe.unet.state_dict().values()} == {"cpu"}


def test_weights_are_stored_packed(quantization: Quantization, saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS)
    for spec in quantization.outcome.specs:
        weight = tensors[f"{spec.name}.weight"]
        count = torch.Size(spec.shape).numel()
        if spec.excluded is None:
            assert weight.dtype == torch.uint8
            assert weight.numel() == -(-count * spec.weight_bits // 8)
        else:
            assert (weight.dtype, weight.numel()) == (torch.float32, count)


def test_nothing_is_pickled(saved: Path) -> None:
    assert {path.suffix for path in saved.rglob("*") if path.is_file()} - {".txt"} == {".json", ".safetensors", ".md"}
    assert not [name for name, content in contents(saved).items() if content.startswith((b"PK", b"\x80"))]


def test_the_tokenizer_is_saved_for_transformers_4_too(quantization: Quantization, saved: Path) -> None:
    """Whose CLIPTokenizer reads these two files, and not tokenizer.json."""
    tokenizer = quantization.source.tokenizer
    vocabulary = json.loads((saved / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    assert vocabulary == tokenizer.get_vocab()
    first, *merges = (saved / "tokenizer" / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert first.startswith("#version")
    assert all(left + right in vocabulary for left, right in (merge.split(" ") for merge in merges))
    assert len(merges) > 100


def test_what_this_version_of_transformers_cannot_read_is_said(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_: Any, **__: Any) -> None:
        raise ImportError("T5Tokenizer requires the SentencePiece library")

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", unreadable)
    with pytest.raises(ArtifactError, match=r"saved with transformers \d+.* install .*SentencePiece"):
        bitbrush.load(artifact, runtime="reference")


def test_manifest_says_what_was_done(quantization: Quantization, saved: Path) -> None:
    manifest = read_manifest(saved)
    assert manifest == json.loads((saved / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["format"], manifest["schema_version"]) == ("bitbrush-artifact", 1)
    assert manifest["base_model"] == "someone/tiny"
    assert manifest["base_model_digest"] == model_digest(quantization.source)
    assert bitbrush.Recipe().updated(manifest["recipe"]) == quantization.recipe
    timesteps = list(quantization.outcome.planned)
    assert len(timesteps) == 3
    assert manifest["plan"] == {
        "scheduler": "DDIMScheduler",
        "timesteps": timesteps,
        "average_activation_bits": pytest.approx((8 + 10 + 10) / 3),
        "start_token_ratio": quantization.outcome.start_token_ratio,
        "product_bits": asdict(quantization.outcome.product_bits),
    }
    names = [name for name, m in quantization.source.unet.named_modules() if type(m).__name__ in {"Conv2d", "Linear"}]
    assert [layer["name"] for layer in manifest["layers"]] == names
    for layer in manifest["layers"]:
        assert layer["shape"] == list(quantization.source.unet.get_submodule(layer["name"]).weight.shape)
        expected = "recipe: exclude *.attn2.to_k" if layer["name"].endswith(".attn2.to_k") else None
        assert layer["excluded"] == expected
    assert set(manifest["versions"]) == {"python", "bitbrush", "torch", "diffusers", "transformers"}


@pytest.mark.parametrize("method", bitbrush.METHODS)
def test_an_artifact_belongs_to_the_model_that_was_given(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, method: str
) -> None:
    """Whatever the method made of it before: that is what comparing asks for."""
    keys = {"steps": 1, "num_prompts": 2, "batch_size": 2, "rounding": "nearest"}
    made = bitbrush.quantize(tiny_pipe, bitbrush.METHODS[method].recipe(keys), ["a cat", "a dog"])
    manifest = read_manifest(save(made, tmp_path / "artifact", base_model="tiny"))
    assert manifest["base_model_digest"] == model_digest(tiny_pipe)


def test_manifest_says_what_it_cost(quantization: Quantization, saved: Path) -> None:
    manifest = read_manifest(saved)
    cost = manifest["cost"]
    assert list(cost) == list(quantization.costs) == ["rounding", "progressive_calibration"]
    for phase in cost.values():
        assert set(phase) == {"seconds", "peak_mib", "denoiser_calls_per_batch"}
    assert cost["progressive_calibration"]["denoiser_calls_per_batch"] == 2 * 3
    denoiser = manifest["denoiser"]
    assert denoiser["bytes"] == (saved / WEIGHTS).stat().st_size
    assert denoiser["full_precision_bytes"] == 4 * sum(p.numel() for p in quantization.source.unet.parameters())
    assert (denoiser["component"], denoiser["family"]) == ("unet", "unet")


def test_every_file_is_hashed(saved: Path) -> None:
    files = verify(saved)["files"]
    assert set(files) == set(contents(saved)) - {"manifest.json", "README.md"}
    assert files[WEIGHTS.as_posix()] == hashlib.sha256((saved / WEIGHTS).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "name", [WEIGHTS.as_posix(), "unet/config.json", "vae/diffusion_pytorch_model.safetensors", "model_index.json"]
)
def test_what_was_altered_cut_or_lost_is_named(artifact: Path, name: str) -> None:
    path = artifact / name
    whole = path.read_bytes()
    middle = len(whole) // 2
    for damaged in (whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], whole[:-1], b""):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=f"{name} was altered or truncated"):
            load(artifact)
    path.unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        load(artifact)
    path.write_bytes(whole)
    load(artifact)


def test_what_is_no_artifact_is_refused(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere is no bitbrush artifact"):
        load(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match=r"model_index\.json is no bitbrush artifact"):
        load(artifact / "model_index.json")
    manifest = artifact / "manifest.json"
    for content, message in [
        (manifest.read_bytes()[:-100], "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b"[]", "is not the manifest of a bitbrush artifact"),
        (b'{"name": "a web app"}', "is not the manifest of a bitbrush artifact"),
        (b'{"format": "bitbrush-artifact"}', "is not the manifest of a bitbrush artifact"),
    ]:
        manifest.write_bytes(content)
        with pytest.raises(ArtifactError, match=rf"manifest\.json {message}"):
            load(artifact)


def test_what_a_newer_version_wrote_is_refused(artifact: Path) -> None:
    with edited(artifact) as manifest:
        manifest["schema_version"] = 2
    with pytest.raises(ArtifactError, match="has schema version 2, and this one reads up to 1; upgrade"):
        load(artifact)
    with edited(artifact) as manifest:
        manifest["schema_version"] = 1
        manifest["denoiser"]["family"] = "dit"
    with pytest.raises(ArtifactError, match=r"of family 'dit'; this bitbrush knows unet, .*, generic: upgrade"):
        load(artifact)


def test_a_manifest_that_does_not_fit_the_weights_is_refused(artifact: Path) -> None:
    with edited(artifact) as manifest:
        manifest["layers"][0]["weight_bits"] = 5
    with pytest.raises(ArtifactError, match=r"does not hold what manifest\.json lists: layer conv_in"):
        load(artifact)
    with edited(artifact) as manifest:
        manifest["layers"][0] |= {"weight_bits": 8, "name": "conv_nowhere"}
    with pytest.raises(ArtifactError, match=r"does not hold what manifest\.json lists: .*conv_nowhere"):
        load(artifact)


@pytest.mark.parametrize("foreign", ["notes.txt", "manifest.json"])
def test_what_is_not_ours_is_neither_replaced_nor_touched(
    quantization: Quantization, tmp_path: Path, foreign: str
) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    (target / foreign).write_text('{"name": "a web app"}', encoding="utf-8")
    with pytest.raises(ValueError, match="mine exists and is no bitbrush artifact"):
        save(quantization, target, base_model="tiny")
    assert contents(tmp_path) == {f"mine/{foreign}": b'{"name": "a web app"}'}


def test_a_file_in_its_place_is_left(quantization: Quantization, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"precious")
    with pytest.raises(ValueError, match="mine exists and is no bitbrush artifact"):
        save(quantization, tmp_path / "mine", base_model="tiny")
    assert contents(tmp_path) == {"mine": b"precious"}


def test_an_artifact_is_replaced_whole(quantization: Quantization, artifact: Path) -> None:
    (artifact / "left over").write_bytes(b"from before")
    assert save(quantization, artifact, base_model="another") == artifact
    assert not (artifact / "left over").exists()
    assert verify(artifact)["base_model"] == "another"
    assert [path.name for path in artifact.parent.iterdir()] == ["artifact"]


@pytest.mark.parametrize("existing", [None, "empty"])
def test_where_nothing_stands_an_artifact_can(quantization: Quantization, tmp_path: Path, existing: str | None) -> None:
    target = tmp_path / "deep" / "artifact"
    if existing:
        target.mkdir(parents=True)
    require_free(target)
    save(quantization, str(target), base_model="tiny")
    verify(target)
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ("module", "step"), [(stored, "save_file"), (writing, "model_card"), (writing, "file_digests")]
)
def test_a_save_that_fails_leaves_what_was(
    quantization: Quantization, artifact: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, step: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    before = contents(artifact.parent)
    monkeypatch.setattr(module, step, fail)
    for target in (artifact, artifact.with_name("new")):
        with pytest.raises(OSError, match="disk full"):
            save(quantization, target, base_model="tiny")
        assert contents(artifact.parent) == before
        assert list(artifact.parent.iterdir()) == [artifact]


@pytest.mark.parametrize("error", [OSError("no"), KeyboardInterrupt()])
def test_a_move_that_fails_puts_the_old_artifact_back(
    quantization: Quantization, artifact: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    failed: list[BaseException] = []

    def replace(self: Path, target: Path) -> Path:
        if target == artifact and not failed:
            failed.append(error)
            raise error
        self.rename(target)
        return target

    before = contents(artifact.parent)
    monkeypatch.setattr(replacing, "_exchange", lambda *_: False)  # as on a file system that cannot
    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(type(error)):
        save(quantization, artifact, base_model="tiny")
    assert contents(artifact.parent) == before


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_others_may_read_what_the_umask_lets_them(quantization: Quantization, tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        root = save(quantization, tmp_path / "artifact", base_model="tiny")
    finally:
        os.umask(before)
    for path in (root, *root.rglob("*")):
        everything = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == everything & ~mask, path.name
