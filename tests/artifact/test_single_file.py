"""The single-file form: the files of the folder bit for bit, under the same checks."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file

import bitbrush
from bitbrush import Quantization
from bitbrush.artifact import single_file
from bitbrush.artifact.documents import ArtifactError
from bitbrush.artifact.folder import file_digests
from bitbrush.artifact.manifest import artifact_folder, is_artifact, manifest_digest, read_manifest
from bitbrush.artifact.single_file import DOCUMENTS_KEY, HEADERS_KEY, MANIFEST_KEY, pack, unpacked
from bitbrush.artifact.store import verify
from bitbrush.artifact.verification import reading
from bitbrush.sources.model_names import UnknownModelError
from tests.artifact.test_from_pretrained import image

DENOISER = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def packed(quantization: Quantization, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("packed") / "x.safetensors"
    assert bitbrush.save(quantization, target, base_model="someone/tiny") == target
    assert [path.name for path in target.parent.iterdir()] == ["x.safetensors"]
    return target


@pytest.fixture
def single(packed: Path, tmp_path: Path) -> Path:
    """A copy for the test to alter."""
    (tmp_path / "x.safetensors").write_bytes(packed.read_bytes())
    return tmp_path / "x.safetensors"


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write(path: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def spoil(path: Path, component: str) -> None:
    """Changes a byte of a component's first tensor."""
    header, data = header_of(path)
    spoilt = bytearray(data)
    first = next(entry for key, entry in header.items() if key.startswith(f"{component}."))
    spoilt[first["data_offsets"][0]] ^= 1
    write(path, header, bytes(spoilt))


def test_it_loads_to_the_same_images(packed: Path, saved: Path) -> None:
    expected = image(bitbrush.load(saved))
    assert torch.equal(image(bitbrush.load(packed)), expected)
    assert torch.equal(image(DiffusionPipeline.from_pretrained(packed)), expected)
    assert torch.equal(
        image(bitbrush.load(packed, runtime="reference")), image(bitbrush.load(saved, runtime="reference"))
    )


def test_it_is_verified_and_recalibrated_as_a_folder(packed: Path, tmp_path: Path) -> None:
    assert is_artifact(packed)
    assert verify(packed) == read_manifest(packed)
    again = bitbrush.recalibrate(packed, {"activations": 6}, ["a dog", "a cat"])
    again.save(tmp_path / "again.safetensors")
    assert read_manifest(tmp_path / "again.safetensors")["recipe"]["activations"] == 6


def test_unpacking_gives_back_the_folder(saved: Path, tmp_path: Path) -> None:
    pack(saved, tmp_path / "x.safetensors")
    with unpacked(tmp_path / "x.safetensors") as folder:
        assert file_digests(folder) == file_digests(saved)
        for name in ("manifest.json", "README.md", DENOISER):
            assert (folder / name).read_bytes() == (saved / name).read_bytes()
    assert not folder.exists()
    assert manifest_digest(tmp_path / "x.safetensors") == manifest_digest(saved)


def test_other_programs_see_the_tensors(packed: Path, saved: Path) -> None:
    tensors = load_file(saved / DENOISER)
    with safe_open(packed, framework="pt") as file:
        assert {key.partition(".")[0] for key in file.keys()} == {"unet", "vae", "text_encoder"}  # noqa: SIM118
        assert json.loads(file.metadata()[MANIFEST_KEY]) == read_manifest(packed)
        for key, tensor in tensors.items():
            assert torch.equal(file.get_tensor(f"unet.{key}"), tensor)


def test_files_that_are_no_text_are_kept(artifact: Path, tmp_path: Path) -> None:
    (artifact / "tokenizer" / "spiece.model").write_bytes(bytes(range(256)))
    manifest = read_manifest(artifact)
    (artifact / "manifest.json").write_text(json.dumps({**manifest, "files": file_digests(artifact)}), encoding="utf-8")
    pack(artifact, tmp_path / "x.safetensors")
    with unpacked(tmp_path / "x.safetensors") as folder:
        assert (folder / "tokenizer" / "spiece.model").read_bytes() == bytes(range(256))


def test_what_was_loaded_is_saved_as_a_folder(single: Path, tmp_path: Path) -> None:
    pipe = bitbrush.load(single)
    pipe.save_pretrained(tmp_path / "folder")
    assert torch.equal(image(bitbrush.load(tmp_path / "folder")), image(pipe))
    changes: dict[str, Callable[[], Any]] = {
        "changed since the denoiser was loaded": lambda: spoil(single, "unet"),
        "is gone": single.unlink,
    }
    for message, change in changes.items():
        change()
        with pytest.raises(ValueError, match=message):
            pipe.unet.save_pretrained(tmp_path / "alone")


def test_a_byte_that_changed_is_refused_by_file(single: Path) -> None:
    """In every weight file's data, by the message that the folder has."""
    content = single.read_bytes()
    for component in ("unet", "vae", "text_encoder"):
        single.write_bytes(content)
        spoil(single, component)
        for read in (bitbrush.load, verify, DiffusionPipeline.from_pretrained):
            with pytest.raises(ArtifactError, match=rf"x\.safetensors/{component}/.*was altered or truncated"):
                read(single)


@pytest.mark.parametrize(
    "name", ["../evil.json", "/evil.json", "unet/evil.py", "unet/../../evil.json", "evil.safetensors"]
)
@pytest.mark.parametrize("key", [DOCUMENTS_KEY, HEADERS_KEY])
def test_names_that_lead_elsewhere_are_refused_before_anything_is_written(
    single: Path, name: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    header, data = header_of(single)
    table = json.loads(header["__metadata__"][key])
    header["__metadata__"][key] = json.dumps({**table, name: next(iter(table.values()))})
    write(single, header, data)
    monkeypatch.setattr(single_file, "require_space", lambda *_: pytest.fail("written"))
    with pytest.raises(ArtifactError, match="which is no file of a pipeline"):
        bitbrush.load(single)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (DOCUMENTS_KEY, "[]"),
        (DOCUMENTS_KEY, "{"),
        (DOCUMENTS_KEY, '{"model_index.json": 1}'),
        (HEADERS_KEY, "{}"),
        (HEADERS_KEY, '{"unet/diffusion_pytorch_model.safetensors": "{}"}'),
        (MANIFEST_KEY, "{}"),
        (MANIFEST_KEY, "not JSON"),
        (MANIFEST_KEY, '{"format": "bitbrush-artifact", "schema_version": 99}'),
    ],
)
def test_metadata_that_was_altered_is_refused(single: Path, key: str, value: str) -> None:
    header, data = header_of(single)
    header["__metadata__"][key] = value
    write(single, header, data)
    with pytest.raises(ArtifactError, match=r"x\.safetensors"):
        bitbrush.load(single)


def test_no_other_error_comes_of_a_header_whose_bytes_changed(single: Path) -> None:
    """The texts of the card alone may change without a word."""
    content = single.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    draw = random.Random(0)
    messages = []
    for _ in range(80):
        changed = bytearray(content)
        for _ in range(draw.choice((1, 1, 3))):
            changed[draw.choice((draw.randrange(16), draw.randrange(length)))] = draw.choice(b'\x00"{}[]:,0-9\xff \\')
        single.write_bytes(changed)
        try:
            with reading(single):
                pass
        except ArtifactError as error:
            messages.append(str(error))
    assert len(messages) > 60
    assert all(str(single) in message for message in messages)


def test_tensors_under_other_names_are_refused(single: Path) -> None:
    header, data = header_of(single)
    header["unet.another"] = header.pop("unet.conv_in.bias")
    write(single, header, data)
    with pytest.raises(ArtifactError, match="its header is not that of the files in it"):
        bitbrush.load(single)


@pytest.mark.parametrize("length", [0, 7, 100, 5000])
def test_a_file_that_is_cut_short_is_refused(single: Path, length: int) -> None:
    single.write_bytes(single.read_bytes()[:length])
    assert not is_artifact(single)
    with pytest.raises(ArtifactError):
        bitbrush.load(single)


def test_a_full_precision_file_is_no_artifact(saved: Path) -> None:
    assert not is_artifact(saved / DENOISER)
    with pytest.raises(ArtifactError, match=r"is no bitbrush artifact: its header has no bitbrush\.manifest"):
        bitbrush.load(saved / DENOISER)


def test_an_artifact_is_no_full_precision_file(packed: Path) -> None:
    with pytest.raises(UnknownModelError, match="is a quantized artifact, and a full-precision model is needed"):
        bitbrush.load_full_precision(packed)


def test_what_needs_a_folder_says_how_to_get_one(packed: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is a single file, and a folder is needed: bitbrush\.load\("):
        artifact_folder(packed)


def test_a_folder_becomes_a_file_and_a_folder_again(saved: Path, tmp_path: Path) -> None:
    bitbrush.load(saved).save_pretrained(tmp_path / "x.safetensors")
    bitbrush.load(tmp_path / "x.safetensors").save_pretrained(tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "x.safetensors"]
    first, second = read_manifest(saved)["files"], read_manifest(tmp_path / "folder")["files"]
    assert first[DENOISER] == second[DENOISER]
    assert torch.equal(image(bitbrush.load(tmp_path / "folder")), image(bitbrush.load(saved)))


def test_other_files_are_not_replaced(quantization: Quantization, saved: Path, tmp_path: Path) -> None:
    target = tmp_path / "full.safetensors"
    target.write_bytes((saved / DENOISER).read_bytes())
    with pytest.raises(ValueError, match="exists and is no bitbrush artifact to replace"):
        bitbrush.save(quantization, target, base_model="someone/tiny")
    assert target.read_bytes() == (saved / DENOISER).read_bytes()


def test_an_artifact_is_replaced(quantization: Quantization, single: Path) -> None:
    bitbrush.save(quantization, single, base_model="someone/else")
    assert read_manifest(single)["base_model"] == "someone/else"


def test_a_save_that_fails_leaves_what_was(
    quantization: Quantization, single: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = single.read_bytes()
    monkeypatch.setattr("bitbrush.artifact.store.pack", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        bitbrush.save(quantization, single, base_model="someone/else")
    assert single.read_bytes() == before
    assert [path.name for path in single.parent.iterdir()] == [single.name]
