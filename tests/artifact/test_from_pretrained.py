"""diffusers' own from_pretrained loads an artifact as bitbrush.load does: the same checks, runtime and images."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    AutoModel,
    AutoPipelineForText2Image,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    PipelineQuantizationConfig,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.quantizers import auto
from safetensors.torch import load_file, save_file
from torch import Tensor

import bitbrush
from bitbrush import BitbrushConfig
from bitbrush.artifact import from_pretrained, loading
from bitbrush.artifact.denoiser import WEIGHTS
from bitbrush.artifact.documents import ArtifactError
from bitbrush.artifact.folder import file_digests
from bitbrush.artifact.quantization_config import METHOD
from bitbrush.runtime.lowered import lowered_of
from bitbrush.sources.checkpoint_type import in_type
from bitbrush.sources.plain_loading import plain


def image(pipe: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return torch.from_numpy(pipe("a red cat", num_inference_steps=2, generator=generator, output_type="np").images)


def runtime_of(denoiser: Any) -> str:
    lowered = lowered_of(denoiser)
    assert lowered is not None
    return lowered.runtime


def reference(component: str = "unet", **keys: Any) -> PipelineQuantizationConfig:
    return PipelineQuantizationConfig(quant_mapping={component: BitbrushConfig(runtime="reference", **keys)})


class TestPipelines:
    @pytest.mark.parametrize("kind", [DiffusionPipeline, StableDiffusionPipeline, AutoPipelineForText2Image])
    def test_the_same_image_bit_for_bit_on_the_same_kernels(self, saved: Path, kind: Any) -> None:
        pipe, own = kind.from_pretrained(saved), bitbrush.load(saved)
        assert type(pipe) is StableDiffusionPipeline
        assert lowered_of(pipe.unet) == lowered_of(own.unet)
        assert torch.equal(image(pipe), image(own))
        assert pipe.config._name_or_path == str(saved)

    def test_another_class_of_the_same_components(self, saved: Path) -> None:
        pipe = StableDiffusionImg2ImgPipeline.from_pretrained(saved)
        assert type(pipe) is StableDiffusionImg2ImgPipeline
        assert runtime_of(pipe.unet) == runtime_of(bitbrush.load(saved).unet)

    @pytest.mark.parametrize("dtype", [None, "auto", torch.float32, {"unet": "auto", "default": torch.float32}])
    def test_float32_is_what_other_networks_compute_in(self, saved: Path, dtype: Any) -> None:
        pipe = StableDiffusionPipeline.from_pretrained(saved, torch_dtype=dtype)
        own = bitbrush.load(saved, dtype="float32" if dtype is torch.float32 else None)
        assert torch.equal(image(pipe), image(own))
        assert pipe.vae.dtype == pipe.text_encoder.dtype == torch.float32

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_that_of_the_other_networks(self, saved: Path, dtype: torch.dtype) -> None:
        pipe = StableDiffusionPipeline.from_pretrained(saved, **in_type(dtype))
        assert pipe.vae.dtype == pipe.text_encoder.dtype == dtype
        own = bitbrush.load(saved, dtype=None if dtype == torch.float16 else dtype).to(dtype)
        assert lowered_of(pipe.unet) == lowered_of(own.unet)
        assert torch.equal(image(pipe), image(own))

    def test_types_by_component(self, saved: Path) -> None:
        types = {"vae": torch.bfloat16, "unet": torch.float32, "default": torch.float32}
        pipe = StableDiffusionPipeline.from_pretrained(saved, **in_type(types))
        assert (pipe.vae.dtype, pipe.text_encoder.dtype) == (torch.bfloat16, torch.float32)
        assert lowered_of(pipe.unet) == lowered_of(bitbrush.load(saved, dtype="float32").unet)

    @pytest.mark.parametrize(
        "options",
        [
            {"low_cpu_mem_usage": True},
            {"use_safetensors": True},
            {"variant": None},
            {"local_files_only": True},
            {"device_map": "cpu"},
            {"device_map": "balanced"},
        ],
    )
    def test_usual_options_change_nothing(self, saved: Path, options: dict[str, Any]) -> None:
        assert torch.equal(
            image(StableDiffusionPipeline.from_pretrained(saved, **options)), image(bitbrush.load(saved))
        )

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"variant": "fp16"}, "variant is no option of an artifact: .* leave it out; torch_dtype sets"),
            ({"low_cpu_mem_usage": False}, "low_cpu_mem_usage is False, .* layer by layer: leave it out"),
            ({"use_safetensors": False}, "use_safetensors is False, .* leave it out"),
            ({"torch_dtype": torch.float64}, r"torch_dtype is torch\.float64; choose from float32, float16, bfloat16"),
            ({"device_map": "cuda"}, "cuda"),
            ({"device_map": {"unet": "cpu", "vae": "disk"}}, "distributes the denoiser over cpu, disk"),
            ({"custom_pipeline": "someone/code"}, r"runs no code of others: load it, and build YourPipeline\("),
            ({"trust_remote_code": True}, "runs no code of others"),
            ({"quantization_config": reference(weights=8)}, "the artifact is quantized: of a BitbrushConfig only"),
            ({"quantization_config": reference("vae")}, "the artifact is quantized: of a BitbrushConfig only"),
            *(({name: "given"}, f"{name} is no option of an artifact") for name in from_pretrained.REMEDIES),
        ],
    )
    def test_what_does_not_apply_is_refused_with_the_remedy(
        self, saved: Path, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            StableDiffusionPipeline.from_pretrained(saved, **options)

    def test_components_are_replaced(self, saved: Path) -> None:
        scheduler = EulerDiscreteScheduler(steps_offset=1)
        pipe = StableDiffusionPipeline.from_pretrained(saved, scheduler=scheduler, unet=None)
        assert pipe.scheduler is scheduler
        assert pipe.unet is None

    def test_the_reference_runtime_by_a_configuration(self, saved: Path) -> None:
        pipe = StableDiffusionPipeline.from_pretrained(saved, quantization_config=reference())
        assert torch.equal(image(pipe), image(bitbrush.load(saved, runtime="reference")))

    def test_full_precision_loads_as_ever(self, tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
        tiny_pipe.save_pretrained(tmp_path / "full")
        with plain():
            expected = StableDiffusionPipeline.from_pretrained(tmp_path / "full")
        pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "full")
        assert lowered_of(pipe.unet) is None
        assert torch.equal(image(pipe), image(expected))


class TestDenoisers:
    @pytest.mark.parametrize(
        ("kind", "folder", "given"),
        [
            (UNet2DConditionModel, ".", {"subfolder": "unet"}),
            (UNet2DConditionModel, "unet", {}),
            (AutoModel, ".", {"subfolder": "unet"}),
        ],
    )
    def test_it_runs_as_in_its_pipeline(self, saved: Path, kind: Any, folder: str, given: dict[str, Any]) -> None:
        denoiser = kind.from_pretrained(str(saved / folder), **given)
        own = bitbrush.load(saved)
        assert lowered_of(denoiser) == lowered_of(own.unet)
        assert not denoiser.training
        assert torch.equal(image(StableDiffusionPipeline.from_pretrained(saved, unet=denoiser)), image(own))

    @pytest.mark.parametrize("place", ["cpu", {"": "cpu"}, "auto", torch.device("cpu")])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_types_and_places(self, saved: Path, place: Any, dtype: torch.dtype) -> None:
        denoiser = UNet2DConditionModel.from_pretrained(saved, subfolder="unet", torch_dtype=dtype, device_map=place)
        own = bitbrush.load(saved, dtype=None if dtype == torch.float16 else dtype)
        assert lowered_of(denoiser) == lowered_of(own.unet)

    def test_the_reference_runtime_by_a_configuration(self, saved: Path) -> None:
        config = BitbrushConfig(runtime="reference")
        denoiser = UNet2DConditionModel.from_pretrained(saved, subfolder="unet", quantization_config=config)
        assert runtime_of(denoiser) == "reference"

    @pytest.mark.parametrize("options", [{"variant": "fp16"}, {"low_cpu_mem_usage": False}])
    def test_what_does_not_apply_is_refused(self, saved: Path, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="leave it out"):
            UNet2DConditionModel.from_pretrained(saved, subfolder="unet", **options)

    def test_another_class_is_refused(self, saved: Path) -> None:
        with pytest.raises(ArtifactError, match="holds a UNet2DConditionModel, no AutoencoderKL"):
            diffusers.AutoencoderKL.from_pretrained(saved, subfolder="unet")

    def test_a_copy_without_its_manifest_is_refused(self, artifact: Path) -> None:
        (artifact / "manifest.json").unlink()
        with pytest.raises(ArtifactError, match=r"has no manifest\.json"):
            UNet2DConditionModel.from_pretrained(artifact, subfolder="unet")


@pytest.mark.parametrize(
    "ending", ["conv_in.weight_scale", "conv_in.bias", "conv_norm_out.weight", "attn2.to_k.weight", "conv_out.weight"]
)
def test_tensors_that_a_denoiser_lacks_are_named(artifact: Path, ending: str) -> None:
    """Quantized and excluded layers and norms are tried by every way of loading; the hashes agree."""
    file = artifact / "unet" / WEIGHTS
    tensors = load_file(file)
    lost = next(name for name in tensors if name.endswith(ending))
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, file, metadata={"format": "pt"})
    path = artifact / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**manifest, "files": file_digests(artifact)}), encoding="utf-8")
    message = f"does not hold what .*({lost}|{ending.rpartition('.')[0]} lacks its bias)"
    for read in (
        bitbrush.load,
        StableDiffusionPipeline.from_pretrained,
        lambda folder: UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
        lambda folder: bitbrush.recalibrate(folder, {}, ["a dog"]),
    ):
        with pytest.raises(ArtifactError, match=message):
            read(artifact)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_no_tensor_is_read_of_a_folder_that_was_altered(
    artifact: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(next((artifact / part).glob("*.safetensors")))
    for name in ("load_denoiser", "load_pipeline"):
        monkeypatch.setattr(loading, name, lambda *_, **__: pytest.fail("read before it was verified"))
    for kind in (DiffusionPipeline, StableDiffusionPipeline, AutoPipelineForText2Image):
        with pytest.raises(ArtifactError, match=f"{part}.* was altered or truncated"):
            kind.from_pretrained(artifact)
    if part == "unet":
        for given in ({"subfolder": "unet"}, {"subfolder": "unet", "quantization_config": BitbrushConfig()}):
            with pytest.raises(ArtifactError, match="was altered or truncated"):
                UNet2DConditionModel.from_pretrained(artifact, **given)


@pytest.mark.parametrize("place", ["evil.py", "unet/evil.py", "unet/diffusion_pytorch_model.bin"])
def test_files_of_other_kinds_are_refused(artifact: Path, place: str) -> None:
    (artifact / place).write_text("raise SystemExit('run')", encoding="utf-8")
    with pytest.raises(ArtifactError, match="is not listed in"):
        StableDiffusionPipeline.from_pretrained(artifact)
    if place.startswith("unet"):
        with pytest.raises(ArtifactError, match="is not listed in"):
            UNet2DConditionModel.from_pretrained(artifact, subfolder="unet")


@pytest.mark.parametrize("entry", [{"auto_map": {"AutoModel": "evil.Model"}}, {"_class_name": "Evil"}])
def test_a_configuration_that_runs_code_is_refused(artifact: Path, entry: dict[str, Any]) -> None:
    path = artifact / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **entry}), encoding="utf-8")
    manifest = artifact / "manifest.json"
    content = json.loads(manifest.read_text(encoding="utf-8"))
    manifest.write_text(json.dumps({**content, "files": file_digests(artifact)}), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"runs other code|no network of this diffusers"):
        UNet2DConditionModel.from_pretrained(artifact, subfolder="unet")
    with pytest.raises(ArtifactError, match=r"runs other code|lists UNet2DConditionModel"):
        StableDiffusionPipeline.from_pretrained(artifact)


def test_without_bitbrush_diffusers_names_it(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for mapping in (auto.AUTO_QUANTIZER_MAPPING, auto.AUTO_QUANTIZATION_CONFIG_MAPPING):
        monkeypatch.delitem(mapping, METHOD)
    with plain(), pytest.raises(ValueError, match="Unknown quantization type, got bitbrush"):
        StableDiffusionPipeline.from_pretrained(saved)
    card = (saved / "README.md").read_text(encoding="utf-8")
    assert "pip install bitbrush" in card
    assert "unknown quantization type `bitbrush`" in card


BEFORE = """
import sys
import bitbrush
assert not {"torch", "diffusers", "transformers"} & sys.modules.keys()
"""
WITHIN = """
import importlib.machinery, sys
class Early:
    def find_spec(self, name, path=None, target=None):
        if name == "diffusers.pipelines.pipeline_loading_utils":  # which pipeline_utils imports
            import bitbrush
            assert "diffusers.pipelines.pipeline_utils" in sys.modules
sys.meta_path.insert(0, Early())
"""
REGISTERED = """
from diffusers import DiffusionPipeline, UNet2DConditionModel
import bitbrush, graphlib
assert UNet2DConditionModel.from_pretrained.bitbrush_original
assert DiffusionPipeline.save_pretrained.bitbrush_original
from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
assert AUTO_QUANTIZATION_CONFIG_MAPPING["bitbrush"] is bitbrush.BitbrushConfig
"""


@pytest.mark.parametrize("first", [BEFORE, WITHIN], ids=["before diffusers", "while diffusers is imported"])
def test_the_import_alone_registers(first: str) -> None:
    command = [sys.executable, "-c", first + REGISTERED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_registering_again_changes_nothing() -> None:
    once = DiffusionPipeline.from_pretrained.__func__, DiffusionPipeline.save_pretrained
    bitbrush.register()
    assert (DiffusionPipeline.from_pretrained.__func__, DiffusionPipeline.save_pretrained) == once


def test_the_artifact_has_the_scheduler_it_was_calibrated_for(saved: Path) -> None:
    assert isinstance(bitbrush.load(saved).scheduler, DDIMScheduler)
    assert bitbrush.read_manifest(saved)["plan"]["scheduler"] == "DDIMScheduler"
