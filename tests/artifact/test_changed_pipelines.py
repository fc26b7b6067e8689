"""What users add to a loaded pipeline, guidance, IP-Adapter, hooks: as on the reference, or refused by name."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import Attention
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

import bitbrush
from bitbrush.runtime.fused_forward import FusedForward
from bitbrush.runtime.interface import RuntimeUnavailable
from tests.artifact.pipelines import CASES, PIXELS, pipeline, quantized
from tests.sources.test_lora import LAYER


@pytest.fixture(scope="module")
def folder(_one_tiny_pipe: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All layers quantized, so that every block is fused."""
    recipe = bitbrush.METHODS["one-shot"].recipe({"steps": 3, "num_prompts": 2, "activations": 12})
    quantization = bitbrush.quantize(_one_tiny_pipe, recipe, ("a red cat", "two blue dogs"))
    return bitbrush.save(quantization, tmp_path_factory.mktemp("saved") / "artifact", base_model="someone/tiny")


def loaded(folder: Path, runtime: str, dtype: str = "float32") -> Any:
    try:
        return bitbrush.load(folder, runtime=runtime, dtype=dtype)
    except RuntimeUnavailable as error:
        pytest.skip(str(error))


def latents(pipe: Any, **arguments: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = {"height": PIXELS, "width": PIXELS}
    y: Tensor = pipe("a cat", num_inference_steps=3, generator=generator, output_type="latent", **size, **arguments)[0]
    return y.float()


def apart(y: Tensor, expected: Tensor) -> float:
    return float((y - expected).norm() / expected.norm())


def guided(kind: Any, pipe: Any, **options: Any) -> Any:
    made = kind(**pipe.components, requires_safety_checker=False, **options)
    made.set_progress_bar_config(disable=True)
    return made


def test_blocks_of_a_loaded_pipeline_are_fused(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipe = loaded(folder, "onednn")
    latents(pipe)
    forwards = [vars(module).get("forward") for module in pipe.unet.modules()]
    blocks = [forward for forward in forwards if isinstance(forward, FusedForward)]
    assert len(blocks) > 10
    assert all(block.may_fuse() for block in blocks)
    assert not [record for record in caplog.records if record.name.startswith("bitbrush")]


GUIDANCES = {
    "pag": (diffusers.StableDiffusionPAGPipeline, {"pag_applied_layers": ["mid"]}, {"pag_scale": 20.0}),
    "sag": (diffusers.StableDiffusionSAGPipeline, {}, {"sag_scale": 3.0}),
}


@pytest.mark.parametrize("name", list(GUIDANCES))
def test_guidance_by_attention_has_the_effect_it_has_on_the_reference(name: str, folder: Path) -> None:
    kind, options, scale = GUIDANCES[name]
    results = {}
    for runtime in ("reference", "onednn"):
        pipe = guided(kind, loaded(folder, runtime), **options)
        results[runtime] = latents(pipe, **scale), latents(pipe, **dict.fromkeys(scale, 0.0))
    effects = {runtime: with_it - without for runtime, (with_it, without) in results.items()}
    assert effects["reference"].norm() > 0.05 * results["reference"][1].norm()
    assert apart(effects["onednn"], effects["reference"]) < 0.1
    assert apart(results["onednn"][0], results["reference"][0]) < 0.01


@pytest.fixture(scope="module")
def image_encoder() -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CLIPVisionModelWithProjection(config).eval()


def add_ip_adapter(pipe: Any, image_encoder: nn.Module) -> None:
    torch.manual_seed(0)
    attentions = [name.removesuffix(".processor") for name in pipe.unet.attn_processors if "attn2" in name]
    heads = {}
    for number, name in enumerate(attentions):
        width = pipe.unet.get_submodule(name).inner_dim
        heads |= {f"{2 * number + 1}.to_{part}_ip.weight": torch.randn(width, 16) for part in "kv"}
    projection = {"proj.weight": torch.randn(64, 8), "proj.bias": torch.zeros(64)}
    projection |= {"norm.weight": torch.ones(16), "norm.bias": torch.zeros(16)}
    pipe.unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": heads}], low_cpu_mem_usage=False)
    size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    pipe.register_modules(image_encoder=image_encoder, feature_extractor=CLIPImageProcessor(**size))


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 0.01), ("bfloat16", 0.1)])
def test_an_ip_adapter_makes_the_reference_s_picture(
    dtype: str, bound: float, folder: Path, image_encoder: nn.Module
) -> None:
    pictures: dict[str, list[Tensor]] = {}
    for runtime in ("reference", "onednn"):
        pipe = loaded(folder, runtime, dtype if runtime == "onednn" else "float32")
        add_ip_adapter(pipe, image_encoder)
        for scale in (0.7, 0.0):
            pipe.set_ip_adapter_scale(scale)
            red = Image.new("RGB", (16, 16), "red")
            pictures.setdefault(runtime, []).append(latents(pipe, ip_adapter_image=red))
        pipe.unload_ip_adapter()
        pictures[runtime].append(latents(pipe))
    assert apart(*pictures["reference"][:2]) > 0.05
    for ours, expected in zip(pictures["onednn"], pictures["reference"], strict=True):
        assert apart(ours, expected) < bound


def test_attention_slicing_is_obeyed_and_taken_back(folder: Path) -> None:
    pipe, called = loaded(folder, "onednn"), []
    before = latents(pipe)
    pipe.enable_attention_slicing(1)
    processor = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor
    assert isinstance(processor, diffusers.models.attention_processor.SlicedAttnProcessor)
    pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.register_forward_hook(lambda *_: called.append(1))
    assert apart(latents(pipe), before) < 0.01
    assert len(called) == 4  # PNDM calls once more than there are steps


def test_hooks_of_a_pipeline_fire_at_every_step(folder: Path) -> None:
    for runtime in ("reference", "onednn"):
        pipe, seen = loaded(folder, runtime), []
        layer = pipe.unet.get_submodule(LAYER)
        handle = layer.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        latents(pipe)
        handle.remove()
        latents(pipe)
        assert len(seen) == 4  # PNDM calls once more than there are steps


def _from_pretrained(folder: Path) -> Any:
    return diffusers.DiffusionPipeline.from_pretrained(folder)


LOADERS = {
    "reference": lambda folder: loaded(folder, "reference"),
    "onednn": lambda folder: loaded(folder, "onednn"),
    "from_pretrained": _from_pretrained,
}


@pytest.fixture(params=list(LOADERS))
def pipe(request: pytest.FixtureRequest, folder: Path) -> Any:
    return LOADERS[request.param](folder)


def test_projections_that_would_not_be_quantized_are_not_joined(pipe: Any) -> None:
    before = latents(pipe)
    with pytest.raises(ValueError, match=r"would not be quantized.*the cuda runtime joins them by itself"):
        pipe.fuse_qkv_projections()
    attention = next(module for module in pipe.unet.modules() if isinstance(module, Attention))
    with pytest.raises(ValueError, match="would not be quantized"):
        attention.fuse_projections()
    pipe.vae.fuse_qkv_projections()
    assert torch.equal(latents(pipe), before)


def test_weights_are_neither_trained_nor_stored_in_another_dtype(pipe: Any) -> None:
    before = latents(pipe)
    with pytest.raises(ValueError, match=r"is not trained.*Train the full-precision pipeline"):
        pipe.unet.requires_grad_(True)
    assert pipe.unet.requires_grad_(False) is pipe.unet
    with pytest.raises(ValueError, match="not stored in another dtype"):
        pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn)
    assert torch.equal(latents(pipe), before)


@pytest.mark.parametrize("name", ["sd3", "flux-schnell", "pixart"])
def test_projections_of_transformers_are_not_joined(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    quantization = quantized(case, pipeline(case), rounding="nearest")
    folder = bitbrush.save(quantization, tmp_path / "artifact", base_model="someone/tiny")
    for pipe in (quantization.pipeline(), bitbrush.load(folder, runtime="reference")):
        transformer = pipe.transformer
        with pytest.raises(ValueError, match="would not be quantized"):
            next(module for module in transformer.modules() if hasattr(module, "fuse_projections")).fuse_projections()
        if hasattr(transformer, "fuse_qkv_projections"):
            with pytest.raises(ValueError, match="would not be quantized"):
                transformer.fuse_qkv_projections()
