"""diffusers' own from_pretrained loads an artifact, and what it loads computes the same."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

import bitbrush
from bitbrush.artifact.denoiser import WEIGHTS
from bitbrush.artifact.documents import ArtifactError
from bitbrush.artifact.folder import file_digests
from bitbrush.sources.checkpoint_type import in_type


def picture(pipe: StableDiffusionPipeline) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return torch.from_numpy(pipe("a red cat", num_inference_steps=2, generator=generator, output_type="np").images)


@pytest.fixture
def artifact(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> Path:
    keys = {"steps": 2, "num_prompts": 1, "rounding": "nearest", "exclude": ["*attn2*"], "scheduler": "ddim"}
    quantization = bitbrush.quantize(tiny_pipe, bitbrush.METHODS["pcr"].recipe(keys), ["a dog"])
    return bitbrush.save(quantization, tmp_path / "artifact", base_model="tiny")


def test_the_same_picture_bit_for_bit(artifact: Path) -> None:
    bitbrush.register()
    assert torch.equal(
        picture(StableDiffusionPipeline.from_pretrained(artifact)),
        picture(bitbrush.load(artifact, runtime="reference")),
    )


def test_half_precision_leaves_the_denoiser_in_float32(artifact: Path) -> None:
    bitbrush.register()
    pipe = StableDiffusionPipeline.from_pretrained(artifact, **in_type(torch.float16))
    assert {parameter.dtype for parameter in pipe.unet.parameters()} == {torch.float32}
    assert pipe.vae.dtype == torch.float16


def test_a_denoiser_alone(artifact: Path) -> None:
    bitbrush.register()
    denoiser = UNet2DConditionModel.from_pretrained(artifact / "unet")
    own = bitbrush.load(artifact, runtime="reference").unet
    assert all(torch.equal(a, b) for a, b in zip(denoiser.parameters(), own.parameters(), strict=True))
    assert not any(parameter.is_meta for parameter in denoiser.parameters())
    assert not denoiser.training


@pytest.mark.parametrize(
    "ending", ["conv_in.weight_scale", "conv_in.bias", "conv_norm_out.weight", "attn2.to_k.weight", "conv_out.weight"]
)
def test_tensors_that_a_denoiser_lacks_are_named(artifact: Path, ending: str) -> None:
    """Of quantized layers, excluded ones and norms; by diffusers, which verifies no hash, and where hashes agree."""
    file = artifact / "unet" / WEIGHTS
    tensors = load_file(file)
    lost = next(name for name in tensors if name.endswith(ending))
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, file, metadata={"format": "pt"})
    bitbrush.register()
    with pytest.raises(ValueError, match=rf"UNet2DConditionModel lacks 1 of its \d+ tensors \({lost}\)"):
        StableDiffusionPipeline.from_pretrained(artifact)
    path = artifact / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**manifest, "files": file_digests(artifact)}), encoding="utf-8")
    for read in (bitbrush.load, lambda folder: bitbrush.recalibrate(folder, {}, ["a dog"])):
        with pytest.raises(
            ArtifactError, match=f"does not hold what .*({lost}|{ending.rpartition('.')[0]} lacks its bias)"
        ):
            read(artifact)


def test_saving_from_memory_is_refused(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not serializable"):
        bitbrush.load(artifact).unet.save_pretrained(tmp_path / "again")


def test_the_artifact_has_the_scheduler_it_was_calibrated_for(artifact: Path) -> None:
    assert isinstance(bitbrush.load(artifact).scheduler, DDIMScheduler)
    assert bitbrush.read_manifest(artifact)["plan"]["scheduler"] == "DDIMScheduler"
