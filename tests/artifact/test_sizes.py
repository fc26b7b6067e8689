"""A denoiser's sizes: of the checkpoint as it is stored, by every way a model is named, and one number everywhere."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from huggingface_hub import constants
from safetensors.torch import save_file

import bitbrush
from bitbrush import ModelOptions, zoo
from bitbrush.artifact.card import model_card
from bitbrush.artifact.manifest import read_manifest
from bitbrush.artifact.sizes import DenoiserSizes, checkpoint_bytes, denoiser_sizes, float32_bytes
from bitbrush.artifact.store import save
from bitbrush.bench.experiments.candidates import open_reference
from bitbrush.session.offload import Offload
from bitbrush.sources import models
from tests.artifact.original_layout import original_layout

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def of(model: object, pipe: DiffusionPipeline, options: ModelOptions | None = None) -> int:
    return checkpoint_bytes(str(model), options or ModelOptions(), "unet", pipe.unet)


def test_a_bundled_models_are_its_files() -> None:
    folder = zoo.model_path("emoji-sd")
    assert folder is not None
    subject, pipe = open_reference("emoji-sd")
    assert of("emoji-sd", pipe) == (folder / WEIGHTS).stat().st_size == round(subject.denoiser_mib * 2**20)
    assert subject.float32_mib * 2**20 == 4 * sum(one.numel() for one in pipe.unet.parameters())
    assert subject.denoiser_mib < 0.51 * subject.float32_mib


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_folders_are_its_files_whatever_they_are_loaded_as(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, dtype: torch.dtype
) -> None:
    tiny_pipe.to(dtype).save_pretrained(tmp_path / "model")
    loaded = bitbrush.load_full_precision(tmp_path / "model")
    assert loaded.unet.dtype == torch.float32
    assert of(tmp_path / "model", loaded) == (tmp_path / "model" / WEIGHTS).stat().st_size
    offloaded = models.load_source(tmp_path / "model", offload=Offload(tmp_path))
    assert (
        float32_bytes(offloaded.unet)
        == float32_bytes(loaded.unet)
        == 4 * sum(p.numel() for p in loaded.unet.parameters())
    )


def test_a_folder_of_shards_and_variants(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    tiny_pipe.save_pretrained(tmp_path / "model", max_shard_size="100KB")
    tiny_pipe.to(torch.float16).save_pretrained(tmp_path / "model", variant="fp16", max_shard_size="50KB")
    files = list((tmp_path / "model" / "unet").glob("*.safetensors"))
    half = [path for path in files if ".fp16" in path.name]
    assert len(half) > 1
    assert len(files) - len(half) > 1
    assert of(tmp_path / "model", tiny_pipe, ModelOptions(variant="fp16")) == sum(p.stat().st_size for p in half)
    assert of(tmp_path / "model", tiny_pipe) == sum(p.stat().st_size for p in files if p not in half)


def test_a_single_files_are_the_denoisers_tensors(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    tensors = {key: tensor.half() for key, tensor in original_layout(tiny_pipe).items()}
    save_file(tensors, tmp_path / "tiny.safetensors")
    assert of(tmp_path / "tiny.safetensors", tiny_pipe) == 2 * sum(p.numel() for p in tiny_pipe.unet.parameters())


def test_a_hub_ids_are_those_in_the_cache(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    tiny_pipe.to(torch.float16).save_pretrained(repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert of("someone/tiny", tiny_pipe) == (repository / "snapshots" / ("0" * 40) / WEIGHTS).stat().st_size


@pytest.mark.parametrize("name", ["someone/tiny", "a pipeline of mine", "x/y/z", ""])
def test_of_a_model_that_is_not_here_the_narrowest_type_counts(tiny_pipe: StableDiffusionPipeline, name: str) -> None:
    count = sum(one.numel() for one in tiny_pipe.unet.parameters())
    assert of(name, tiny_pipe) == 4 * count
    assert of(name, tiny_pipe.to(torch.float16)) == 2 * count
    assert of(name, tiny_pipe.to(torch.float32)) == 2 * count  # as a checkpoint in half precision that was widened


def test_the_manifest_card_and_benchmark_have_one_number(saved: Path) -> None:
    manifest = read_manifest(saved)
    sizes = denoiser_sizes(manifest)
    assert sizes.packed == (saved / WEIGHTS).stat().st_size
    assert sizes.checkpoint == manifest["denoiser"]["checkpoint_bytes"] == sizes.float32  # of random weights
    assert sizes.text in (saved / "README.md").read_text(encoding="utf-8")
    assert f"{sizes.packed / 2**20:.2f} MiB" in sizes.text


def test_an_older_artifact_tells_what_it_knows(artifact: Path) -> None:
    manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    del manifest["denoiser"]["checkpoint_bytes"]
    (artifact / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    told = read_manifest(artifact)
    sizes = denoiser_sizes(told)
    assert sizes.checkpoint is None
    assert "checkpoint" not in sizes.text
    assert sizes.text in model_card(told)
    assert bitbrush.load(artifact, runtime="reference").unet is not None


def test_a_recalibrated_artifact_has_the_sizes_of_the_first(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    """Its own pipeline has branches beside the layers, which the checkpoint does not."""
    keys = {"rounding": "nearest", "steps": 2, "num_prompts": 2, "low_rank": 2}
    made = bitbrush.quantize(tiny_pipe.to(torch.float16), bitbrush.METHODS["pcr"].recipe(keys), ["a cat", "a dog"])
    first = save(made, tmp_path / "first", base_model="tiny")
    again = save(bitbrush.recalibrate(first, {"steps": 3}, ["a cat", "a dog"]), tmp_path / "again")
    sizes = [denoiser_sizes(read_manifest(one)) for one in (first, again)]
    assert sizes[0].float32 == sizes[1].float32 == float32_bytes(tiny_pipe.unet)
    assert sizes[0].checkpoint == sizes[1].checkpoint == sizes[0].float32 // 2
    manifest = read_manifest(first)
    del manifest["denoiser"]["checkpoint_bytes"]
    (first / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    shutil.rmtree(again)
    save(bitbrush.recalibrate(first, {"steps": 3}, ["a cat", "a dog"]), again)
    assert denoiser_sizes(read_manifest(again)).checkpoint is None


def test_in_words() -> None:
    sizes = DenoiserSizes(packed=int(5.66 * 2**20), float32=int(41.43 * 2**20), checkpoint=int(20.75 * 2**20))
    assert sizes.text == "5.66 MiB, 0.27 of its checkpoint's 20.75 MiB (41.43 MiB in float32)"
    assert DenoiserSizes(2**20, 4 * 2**20, None).text == "1.00 MiB, 0.25 of 4.00 MiB in float32"
