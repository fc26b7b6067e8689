"""Pipelines whose artifact could not be loaded again are refused before any work, and no such artifact is kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from torch import nn

import bitbrush
from bitbrush import Quantization
from bitbrush.artifact import store, writing
from bitbrush.sources.savable import require_savable, saved_class
from bitbrush.timeline import trajectory
from tests.artifact.pipelines import CASES, PROMPTS, generated, pipeline, quantized


class Mine(StableDiffusionPipeline):
    """Any class that is not diffusers' own."""


class MyUNet(UNet2DConditionModel):
    pass


class MyScheduler(DDIMScheduler):
    pass


def lora(network: Any, *layers: str) -> None:
    peft = pytest.importorskip("peft", reason="the extra 'lora' is not installed")
    network.add_adapter(peft.LoraConfig(r=2, init_lora_weights=False, target_modules=list(layers)))


def with_unet_lora(pipe: StableDiffusionPipeline) -> None:
    lora(pipe.unet, "to_q", "to_v")


def with_unet_lora_switched_off(pipe: StableDiffusionPipeline) -> None:
    lora(pipe.unet, "to_q", "to_v")
    pipe.unet.disable_adapters()


def with_text_encoder_lora(pipe: StableDiffusionPipeline) -> None:
    lora(pipe.text_encoder, "q_proj")


def with_ip_adapter(pipe: StableDiffusionPipeline) -> None:
    processors = dict(pipe.unet.attn_processors)
    for name in [name for name in processors if name.endswith("attn2.processor")]:
        width = pipe.unet.get_submodule(name.removesuffix(".processor")).to_q.in_features
        processors[name] = IPAdapterAttnProcessor2_0(hidden_size=width, cross_attention_dim=16)
    pipe.unet.set_attn_processor(processors)


def with_joined_projections(pipe: StableDiffusionPipeline) -> None:
    pipe.fuse_qkv_projections()


def with_weight_norm(pipe: StableDiffusionPipeline) -> None:
    nn.utils.parametrizations.weight_norm(pipe.vae.encoder.conv_in)


def pruned(pipe: StableDiffusionPipeline) -> None:
    (fc1,) = (module for name, module in pipe.text_encoder.named_modules() if name.endswith("layers.0.mlp.fc1"))
    fc1.weight = nn.Parameter(fc1.weight[:-4].detach())


def with_own_unet(pipe: StableDiffusionPipeline) -> None:
    pipe.unet = MyUNet.from_config(pipe.unet.config)


def with_own_scheduler(pipe: StableDiffusionPipeline) -> None:
    pipe.scheduler = MyScheduler.from_config(pipe.scheduler.config)


def offloaded(pipe: StableDiffusionPipeline) -> None:
    pipe.vae.to("meta")


def tiling(pipe: StableDiffusionPipeline) -> None:
    for module in pipe.unet.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"


def with_another_epsilon(pipe: StableDiffusionPipeline) -> None:
    pipe.vae.decoder.conv_norm_out.eps = 0.1


FUSE = r"fuse the adapter first: pipe\.fuse_lora\(\), then pipe\.unload_lora_weights\(\)"
CHANGES: dict[Callable[[StableDiffusionPipeline], None], str] = {
    with_unet_lora: rf"unet \(UNet2DConditionModel\) has other tensors .*to_q\.base_layer.*; {FUSE}",
    with_unet_lora_switched_off: FUSE,
    with_text_encoder_lora: rf"text_encoder \(CLIPTextModel\) .*{FUSE}",
    with_ip_adapter: r"unet .*to_k_ip.*pipe\.unload_ip_adapter\(\)",
    with_joined_projections: r"to_qkv.*load the pipeline again, without pipe\.fuse_qkv_projections",
    with_weight_norm: r"vae \(AutoencoderKL\) .*encoder\.conv_in.*undo what was done to its layers",
    pruned: r"text_encoder .*mlp\.fc1\.weight",
    with_own_unet: r"unet is a MyUNet of tests\.sources\.test_savable",
    with_own_scheduler: "scheduler is a MyScheduler of .*classes of diffusers and transformers",
    tiling: r"unet\.conv_in is Conv2d\(.*padding_mode=circular.*make it again in bitbrush\.load",
    with_another_epsilon: r"vae\.decoder\.conv_norm_out is GroupNorm\(.*eps=0\.1.*would be loaded without the change",
    offloaded: r"vae .*has no values in memory for .*without offloading",
}


@pytest.mark.parametrize("change", CHANGES)
def test_refused_before_anything_is_computed(
    tiny_pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]
) -> None:
    def no_call(*_: object, **__: object) -> None:
        raise AssertionError("a pipeline was called")

    monkeypatch.setattr(trajectory, "start", no_call)
    change(tiny_pipe)
    recipe = bitbrush.METHODS["one-shot"].recipe({"steps": 2, "num_prompts": 1})
    with pytest.raises(ValueError, match=CHANGES[change]):
        bitbrush.quantize(tiny_pipe, recipe, PROMPTS)


def test_a_fused_adapter_is_no_obstacle(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    lora(tiny_pipe.unet, "to_q")
    tiny_pipe.fuse_lora()
    tiny_pipe.unload_lora_weights()
    recipe = bitbrush.METHODS["rtn"].recipe({"steps": 1, "num_prompts": 1})
    bitbrush.load(bitbrush.save(bitbrush.quantize(tiny_pipe, recipe, PROMPTS), tmp_path / "a", base_model="tiny"))


@pytest.mark.parametrize("name", CASES)
def test_published_pipelines_are_savable(name: str) -> None:
    pipe = pipeline(CASES[name])
    require_savable(pipe)
    assert saved_class(pipe) is type(pipe)


class TestPipelineClasses:
    def test_one_derived_from_diffusers_is_saved_as_that(
        self, tiny_pipe: StableDiffusionPipeline, tmp_path: Path
    ) -> None:
        pipe = Mine(**tiny_pipe.components, requires_safety_checker=False)
        recipe = bitbrush.METHODS["rtn"].recipe({"steps": 1, "num_prompts": 1})
        quantization = bitbrush.quantize(pipe, recipe, PROMPTS)
        with pytest.warns(
            UserWarning, match=r"Mine is no class of diffusers: .* as a StableDiffusionPipeline, .*Mine\("
        ):
            folder = bitbrush.save(quantization, tmp_path / "a", base_model="tiny")
        assert bitbrush.read_manifest(folder)["pipeline_class"] == "Mine"
        loaded = bitbrush.load(folder, runtime="reference")
        assert type(loaded) is StableDiffusionPipeline
        mine = Mine(**loaded.components, requires_safety_checker=False)
        images = [
            one("a cat", num_inference_steps=1, generator=torch.Generator().manual_seed(0), output_type="np").images
            for one in (mine, quantization.pipeline())
        ]
        assert np.array_equal(*images)

    def test_one_of_its_own_kind(self, tiny_pipe: StableDiffusionPipeline) -> None:
        class Alone(DiffusionPipeline):
            def __init__(self, unet: nn.Module) -> None:
                super().__init__()
                self.register_modules(unet=unet)

        with pytest.raises(ValueError, match="Alone is no class of diffusers, nor derived from one"):
            require_savable(Alone(tiny_pipe.unet))

    def test_one_with_a_further_component(self, tiny_pipe: StableDiffusionPipeline) -> None:
        class WithUpscaler(StableDiffusionPipeline):
            def __init__(self, *, upscaler: Any, **parts: Any) -> None:
                super().__init__(**parts, requires_safety_checker=False)
                self.register_modules(upscaler=upscaler)

            @property
            def components(self) -> dict[str, Any]:
                return {name: getattr(self, name) for name in ("unet", "vae", "upscaler")}

        pipe = WithUpscaler(upscaler=tiny_pipe.vae, **tiny_pipe.components)
        with pytest.raises(ValueError, match="StableDiffusionPipeline, as which its artifact is loaded, takes no upsc"):
            saved_class(pipe)


def test_sd3_without_t5(tmp_path: Path) -> None:
    """As diffusers advises for little memory."""
    case = CASES["sd3"]
    pipe = pipeline(case)
    pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    quantization = quantized(case, pipe, rounding="nearest")
    folder = bitbrush.save(quantization, tmp_path / "a", base_model="sd3")
    loaded = bitbrush.load(folder, runtime="reference")
    assert loaded.text_encoder_3 is loaded.tokenizer_3 is None
    images = [generated(case, one, quantization).latents for one in (loaded, quantization.pipeline())]
    assert np.array_equal(*images)
    pipe.save_pretrained(tmp_path / "full")
    assert bitbrush.load_full_precision(tmp_path / "full").text_encoder_3 is None
    again = bitbrush.recalibrate(folder, {"steps": 1}, PROMPTS)
    assert bitbrush.load(bitbrush.save(again, tmp_path / "again"), runtime="reference").tokenizer_3 is None


class TestSaving:
    @pytest.mark.parametrize(
        "file", ["vae/diffusion_pytorch_model.safetensors", "unet/config.json", "model_index.json"]
    )
    def test_what_does_not_load_is_not_kept(
        self, quantization: Quantization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
    ) -> None:
        write = store._write

        def incomplete(quantization: Quantization, root: Path, *facts: Any) -> None:
            write(quantization, root, *facts)
            (root / file).unlink()

        monkeypatch.setattr(store, "_write", incomplete)
        with pytest.raises(ValueError, match="the artifact was not kept, as it does not load:"):
            bitbrush.save(quantization, tmp_path / "a", base_model="tiny")
        assert not list(tmp_path.iterdir())

    def test_a_denoiser_with_nan_is_not_kept(
        self, quantization: Quantization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        others = writing.other_tensors

        def damaged(*arguments: Any) -> dict[str, torch.Tensor]:
            tensors = {key: tensor.clone() for key, tensor in others(*arguments).items()}
            next(tensor for tensor in tensors.values() if tensor.is_floating_point()).view(-1)[0] = torch.nan
            return tensors

        monkeypatch.setattr(writing, "other_tensors", damaged)
        with pytest.raises(ValueError, match=r"not kept.*the denoiser holds NaN or infinity in "):
            bitbrush.save(quantization, tmp_path / "a", base_model="tiny")

    def test_what_is_in_memory_alone_is_saved_by_its_quantization(
        self, quantization: Quantization, tmp_path: Path
    ) -> None:
        pipe = quantization.pipeline()
        for owner in (pipe, pipe.unet):
            with pytest.raises(ValueError, match=r"save the Quantization: quantization\.save\(DIRECTORY\)"):
                owner.save_pretrained(tmp_path / "copy")
            assert not (tmp_path / "copy").exists()

    def test_full_precision_is_saved_as_ever(self, tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
        tiny_pipe.save_pretrained(tmp_path / "copy")
        assert (tmp_path / "copy" / "model_index.json").is_file()
        assert not (tmp_path / "copy" / "manifest.json").exists()
