"""A whole pipeline in one file, in the layout of the original Stable Diffusion code."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from bitbrush import ModelOptions, load_full_precision
from bitbrush.sources.model_names import UnknownModelError
from bitbrush.sources.models import find_model
from tests.artifact.original_layout import original_layout


@pytest.fixture
def checkpoint(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> Path:
    """Beside the pipeline's own folder, ``tiny``."""
    tiny_pipe.save_pretrained(tmp_path / "tiny")
    save_file(original_layout(tiny_pipe), tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_holds_the_same_weights_as_the_folder(
    tiny_pipe: StableDiffusionPipeline, checkpoint: Path, dtype: torch.dtype
) -> None:
    save_file({key: tensor.to(dtype) for key, tensor in original_layout(tiny_pipe).items()}, checkpoint)
    pipe = load_full_precision(checkpoint, ModelOptions(config=str(checkpoint.parent / "tiny")))
    assert isinstance(pipe, StableDiffusionPipeline)
    for name in ("unet", "vae", "text_encoder"):
        expected, tensors = getattr(tiny_pipe, name).state_dict(), getattr(pipe, name).state_dict()
        assert tensors.keys() == expected.keys()
        for key, tensor in tensors.items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, expected[key].to(dtype).float()), key
    images = [one("a cat", generator=torch.Generator().manual_seed(0), output_type="np") for one in (pipe, tiny_pipe)]
    if dtype == torch.float32:
        assert (images[0].images == images[1].images).all()


def test_without_a_configuration_and_offline(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"stable-diffusion-v1-5, which its shapes indicate: .*--config"):
        load_full_precision(checkpoint)


def test_a_configuration_that_does_not_fit(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be loaded with the configuration .*nowhere.*--config"):
        load_full_precision(checkpoint, ModelOptions(config=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match=r"cannot be loaded with the configuration .*--config"):
        load_full_precision(checkpoint, ModelOptions(config=str(find_model("emoji-sd"))))


def test_other_files_are_told_from_it(checkpoint: Path, tmp_path: Path) -> None:
    unknown = tmp_path / "unknown.safetensors"
    save_file({"blocks.0.weight": torch.ones(2)}, unknown)
    with pytest.raises(ValueError, match=r"a denoiser and an autoencoder is missing among its 1 tensors .blocks\.0"):
        load_full_precision(unknown)
    alone = tmp_path / "alone.safetensors"
    save_file({"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": torch.ones(2)}, alone)
    with pytest.raises(ValueError, match="no checkpoint of a whole pipeline: an autoencoder is missing"):
        load_full_precision(alone)
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"tiny\.safetensors is no intact safetensors file"):
        load_full_precision(checkpoint)


def test_options_that_do_not_apply(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match=r"there is no file .*other\.safetensors"):
        find_model(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="variant is 'fp16', but a single file such as"):
        find_model(checkpoint, ModelOptions(variant="fp16"))
    with pytest.raises(ValueError, match=r"revision is 'main', but .* is local"):
        find_model(checkpoint, ModelOptions(revision="main"))
    with pytest.raises(ValueError, match=r"config is 'x', but 'emoji-sd' is no \.safetensors file"):
        find_model("emoji-sd", ModelOptions(config="x"))
