"""Quantizing while diffusers loads: the same integers as bitbrush.quantize gives by the same keys."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, PipelineQuantizationConfig, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import SafetensorError
from transformers import CLIPTextModel

import bitbrush
from bitbrush import BitbrushConfig
from bitbrush.network.own_dtype import set_channels_last_
from bitbrush.runtime.lowered import lowered_of
from tests.artifact.test_from_pretrained import image, runtime_of

KEYS: dict[str, Any] = {"weights": 4, "activations": 8, "method": "dynamic", "exclude": ["*attn2*"]}


@pytest.fixture(scope="module")
def full(_one_tiny_pipe: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full") / "tiny"
    _one_tiny_pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def quantized(full: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same keys through bitbrush.quantize."""
    pipe = bitbrush.load_full_precision(full)
    made = bitbrush.quantize(pipe, ["a dog"], rounding="nearest", steps=2, num_prompts=1, **KEYS)
    return made.save(tmp_path_factory.mktemp("quantized") / "artifact")


def channels_last(pipe: Any) -> Any:
    """Gives the VAE the memory layout that bitbrush.load gives it on onednn; it differs by rounding alone."""
    set_channels_last_(pipe.vae)
    return pipe


def by_mapping(config: BitbrushConfig) -> PipelineQuantizationConfig:
    return PipelineQuantizationConfig(quant_mapping={"unet": config})


@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_the_images_of_an_artifact_of_the_same_keys(full: Path, quantized: Path, runtime: str) -> None:
    config = by_mapping(BitbrushConfig(runtime=runtime, **KEYS))
    pipe = StableDiffusionPipeline.from_pretrained(full, quantization_config=config)
    own = bitbrush.load(quantized, runtime=runtime)
    assert lowered_of(pipe.unet) == lowered_of(own.unet)
    if lowered_of(own.unet).runtime == "onednn":
        channels_last(pipe)
    assert torch.equal(image(pipe), image(own))


def test_a_backend_by_name(full: Path, quantized: Path) -> None:
    config = PipelineQuantizationConfig(quant_backend="bitbrush", quant_kwargs=KEYS, components_to_quantize="unet")
    pipe = StableDiffusionPipeline.from_pretrained(full, quantization_config=config)
    assert torch.equal(image(channels_last(pipe)), image(bitbrush.load(quantized)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_denoiser_alone_in_each_type(full: Path, quantized: Path, dtype: torch.dtype) -> None:
    config = BitbrushConfig(**KEYS)
    denoiser = UNet2DConditionModel.from_pretrained(
        full, subfolder="unet", quantization_config=config, torch_dtype=dtype
    )
    own = bitbrush.load(quantized, dtype=None if dtype == torch.float16 else dtype)
    assert lowered_of(denoiser) == lowered_of(own.unet)
    pipe = bitbrush.load(quantized)
    pipe.unet = denoiser
    assert torch.equal(image(pipe), image(own))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"method": "rtn"}, r"method rtn needs calibration prompts for observation.*weight_range='min-max'"),
        ({"method": "pcr"}, "method pcr needs calibration prompts for start token"),
        ({"rounding": "learned"}, "method dynamic needs calibration prompts for recording"),
        ({"first_token": "auto"}, "needs calibration prompts for start token"),
        ({"first_token": "known"}, "needs calibration prompts for first token"),
        ({"low_rank": 4}, "needs calibration prompts for branches"),
        ({"skip_inputs": "split"}, "needs calibration prompts for split skips"),
        ({"weights": 9}, "weights is 9"),
        ({"runtime": "fast"}, "runtime is 'fast'; choose from auto, reference"),
        ({"nonsense": 1}, "unknown recipe key 'nonsense'"),
    ],
)
def test_what_it_cannot_do_is_refused_before_weights_are_read(
    full: Path, keys: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UNet2DConditionModel, "_load_pretrained_model", lambda *_, **__: pytest.fail("weights read"))
    with pytest.raises(ValueError, match=message):
        UNet2DConditionModel.from_pretrained(
            full, subfolder="unet", quantization_config=BitbrushConfig(**{**KEYS, **keys})
        )


def test_rtn_by_its_keys(full: Path) -> None:
    """The message on ``method="rtn"`` names these keys."""
    config = BitbrushConfig(weights=4, weight_range="min-max")
    assert runtime_of(UNet2DConditionModel.from_pretrained(full, subfolder="unet", quantization_config=config))


def test_other_networks_are_refused(full: Path) -> None:
    with pytest.raises(ValueError, match=r"AutoencoderKL is no denoiser of a known kind .*name the denoiser alone"):
        AutoencoderKL.from_pretrained(full, subfolder="vae", quantization_config=BitbrushConfig())
    with pytest.raises(ValueError, match="bitbrush quantizes denoisers, no text encoders"):
        CLIPTextModel.from_pretrained(full / "text_encoder", quantization_config=BitbrushConfig())


def test_a_damaged_checkpoint_is_refused(full: Path, tmp_path: Path, tiny_pipe: StableDiffusionPipeline) -> None:
    with torch.no_grad():
        tiny_pipe.unet.conv_in.weight[0] = torch.nan
    tiny_pipe.unet.save_pretrained(tmp_path / "unet")
    with pytest.raises(ValueError, match="of layer conv_in are NaN or infinite"):
        UNet2DConditionModel.from_pretrained(tmp_path / "unet", quantization_config=BitbrushConfig())
    (file,) = (tmp_path / "unet").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises((OSError, ValueError, SafetensorError)):
        UNet2DConditionModel.from_pretrained(tmp_path / "unet", quantization_config=BitbrushConfig())


def test_it_is_saved_as_an_artifact(full: Path, tmp_path: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(full, quantization_config=by_mapping(BitbrushConfig(**KEYS)))
    pipe.save_pretrained(tmp_path / "artifact")
    assert torch.equal(image(channels_last(pipe)), image(bitbrush.load(tmp_path / "artifact")))
    manifest = bitbrush.read_manifest(tmp_path / "artifact")
    assert manifest["base_model"] == "tiny"
    assert "base_model_digest" not in manifest
    assert manifest["recipe"]["method"] == "dynamic"
    size = (tmp_path / "artifact" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert manifest["denoiser"]["bytes"] == size
    assert manifest["denoiser"]["full_precision_bytes"] == 4 * sum(
        one.numel() for one in bitbrush.load_full_precision(full).unet.parameters()
    )
