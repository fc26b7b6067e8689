"""Full-precision pipelines by name, directory, or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from bitbrush import ModelOptions, load_full_precision
from bitbrush.network.lazy_weights import layer_bytes
from bitbrush.session import disk
from bitbrush.session.disk import DiskError
from bitbrush.session.offload import Offload
from bitbrush.sources.model_names import UnknownModelError
from bitbrush.sources.models import find_model, load_source


def test_the_bundled_pipeline_is_in_float32() -> None:
    pipe = load_full_precision("emoji-sd")
    assert isinstance(pipe, StableDiffusionPipeline)
    assert {parameter.dtype for parameter in pipe.unet.parameters()} == {torch.float32}


def test_a_directory_is_a_pipeline(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    tiny_pipe.to(torch.bfloat16).save_pretrained(tmp_path / "tiny")
    assert find_model(tmp_path / "tiny") == str(tmp_path / "tiny")
    pipe = load_full_precision(tmp_path / "tiny")
    assert {parameter.dtype for parameter in pipe.unet.parameters()} == {torch.float32}


def test_what_is_no_pipeline_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match="'emoji-clip' is no pipeline; emoji-sd and emoji-sdxl are"):
        load_full_precision("emoji-clip")
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(UnknownModelError, match=r"is no diffusers pipeline: it has no model_index\.json"):
            load_full_precision(path)


@pytest.mark.parametrize("name", ["no/such-model", "no such model!", "./nowhere", "a/b/c/d"])
def test_unknown_names_say_where_was_looked(name: str) -> None:
    with pytest.raises(
        UnknownModelError,
        match=f"model '{name}' is neither bundled .emoji-sd, emoji-sdxl, emoji-clip., nor a directory",
    ):
        load_full_precision(name)


LOADS = """
import bitbrush

def bias(revision, variant=None):
    options = bitbrush.ModelOptions(revision=revision, variant=variant)
    return float(bitbrush.load_full_precision("someone/tiny", options).unet.conv_in.bias[0])

print(bias("main"), bias("next", "fp16"))
bias("none")
"""


@pytest.fixture
def hub_cache(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> Path:
    """A cache in which someone/tiny was downloaded twice: main's first bias is 1, that of branch "next" is 2."""
    repository = tmp_path / "home" / "hub" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    for branch, bias in (("main", 1.0), ("next", 2.0)):
        with torch.no_grad():
            tiny_pipe.unet.conv_in.bias[0] = bias
        commit = f"{int(bias):040d}"
        tiny_pipe.save_pretrained(repository / "snapshots" / commit)
        (repository / "refs" / branch).write_text(commit, encoding="utf-8")
    with torch.no_grad():
        tiny_pipe.unet.conv_in.bias[0] = 3.0
    tiny_pipe.save_pretrained(repository / "snapshots" / commit, variant="fp16")
    return tmp_path / "home"


def test_hub_ids_come_from_the_cache_by_revision_and_variant(hub_cache: Path) -> None:
    """HF_HOME and HF_HUB_OFFLINE are read when huggingface_hub is imported: a process of its own."""
    environment = {**os.environ, "HF_HOME": str(hub_cache), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", LOADS], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "1.0 3.0\n", done.stderr
    assert "model 'someone/tiny' with revision 'none' is neither bundled" in done.stderr
    assert "nor in the hub's cache" in done.stderr


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_a_file_that_is_cut_short_is_told_of(
    component: str, tiny_pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    """As a download that was interrupted."""
    tiny_pipe.save_pretrained(tmp_path / "tiny")
    (file,) = (tmp_path / "tiny" / component).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UnknownModelError, match=r"cannot be loaded: .*cut short: fetch it again"):
        load_full_precision(tmp_path / "tiny")
    with pytest.raises(UnknownModelError, match=rf"{component}/.*safetensors is no whole safetensors file"):
        load_source(tmp_path / "tiny", offload=Offload(tmp_path))


def test_a_variant_of_a_local_folder(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    tiny_pipe.save_pretrained(tmp_path / "tiny", variant="fp16")
    assert load_full_precision(tmp_path / "tiny", ModelOptions(variant="fp16")).unet is not None
    with pytest.raises(UnknownModelError, match="with variant 'ema'"):
        load_full_precision(tmp_path / "tiny", ModelOptions(variant="ema"))


def test_a_disk_without_room_for_the_weights_is_known_before_they_are_loaded(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_pipe.save_pretrained(tmp_path / "tiny")
    tiny_pipe.save_pretrained(tmp_path / "tiny", variant="fp16")  # counts nothing: it is not loaded
    (file,) = (tmp_path / "tiny" / "unet").glob("diffusion_pytorch_model.safetensors")
    size = file.stat().st_size
    networks = (tiny_pipe.unet, tiny_pipe.vae, tiny_pipe.text_encoder)
    every = sum(map(layer_bytes, networks))
    assert every > size
    monkeypatch.setattr(disk, "available_disk", lambda _: every)
    assert load_source(tmp_path / "tiny", offload=Offload(tmp_path)).unet is not None
    monkeypatch.setattr(disk, "available_disk", lambda _: every - 1)
    with monkeypatch.context() as patched:
        patched.setattr("bitbrush.sources.models.offload_weights", None)
        with pytest.raises(DiskError, match="that the model's weights take while it is quantized; make room"):
            load_source(tmp_path / "tiny", offload=Offload(tmp_path))
    monkeypatch.setattr(disk, "available_disk", lambda _: size - 1)
    monkeypatch.setattr("bitbrush.sources.models._load_folder", None)
    with pytest.raises(
        DiskError, match=r"left of the .* that the model's weights take while it is quantized; make room"
    ):
        load_source(tmp_path / "tiny", offload=Offload(tmp_path))
