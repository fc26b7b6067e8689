"""However a checkpoint's weights are held, the artifact is the same file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from safetensors.torch import save_file
from torch import nn

import bitbrush
from bitbrush import Lora
from bitbrush.artifact.store import WEIGHTS
from bitbrush.network.families import family_of
from bitbrush.network.lazy_weights import count_lazy_weights, lazy_layers
from bitbrush.quantization import quantize as quantization
from bitbrush.session import offload as offloading
from bitbrush.session.offload import Offload
from bitbrush.sources.checkpoint_type import file_type, folder_type, in_type
from bitbrush.sources.identity import model_digest
from bitbrush.sources.models import ModelOptions, load_full_precision, load_source
from tests.artifact.original_layout import original_layout
from tests.artifact.pipelines import CASES, pipeline, quantized

PROMPTS = ("a red cat", "two blue dogs on the left")


@pytest.fixture(autouse=True)
def _offloads_small_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offloading, "SMALLEST", 1)


def weights(made: bitbrush.Quantization, folder: Path) -> bytes:
    """What is stored of the denoiser, and of all other networks."""
    root = bitbrush.save(made, folder, base_model="someone/tiny")
    return b"".join(path.read_bytes() for path in sorted(root.rglob("*.safetensors")))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("sd1", torch.bfloat16), *((name, torch.float16) for name in ("sdxl-turbo", "pixart", "sd3", "flux-dev"))],
)
def test_half_precision_gives_what_the_same_weights_give_in_float32(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    case = CASES[name]
    pipeline(case).to(dtype).save_pretrained(tmp_path / "model")
    own = DiffusionPipeline.from_pretrained(tmp_path / "model", **in_type(dtype))
    lean, wide = load_source(tmp_path / "model", offload=Offload(tmp_path)), load_full_precision(tmp_path / "model")
    component = family_of(wide).component
    assert {part.dtype for part in getattr(own, component).parameters()} == {dtype}
    assert count_lazy_weights(getattr(lean, component)) > 0
    assert model_digest(own) == model_digest(lean) == model_digest(wide)
    made = [quantized(case, pipe, rounding="nearest") for pipe in (own, lean, wide)]
    first, second, third = (weights(one, tmp_path / str(index)) for index, one in enumerate(made))
    assert first == third
    assert second == third
    assert {part.dtype for part in getattr(own, component).parameters()} == {dtype}  # left as it was


@pytest.mark.parametrize("keys", [{}, {"exclude": ["*.attn2.*", "conv_out"]}], ids=["all layers", "some excluded"])
def test_learned_rounding_does_not_notice_either(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the weights' type, nor of whether samples wait on the disk or in memory."""
    tiny_pipe.to(torch.float16).save_pretrained(tmp_path / "model")
    recipe = bitbrush.METHODS["pcr"].recipe({"steps": 3, "num_prompts": 2, **keys})
    source = load_source(tmp_path / "model", offload=Offload(tmp_path))
    with monkeypatch.context() as changed:
        changed.setattr(quantization, "BUDGET_BYTES", 0)
        lean = bitbrush.quantize(source, recipe, PROMPTS, work=tmp_path / "work")
    wide = bitbrush.quantize(load_full_precision(tmp_path / "model"), recipe, PROMPTS)
    assert weights(lean, tmp_path / "a") == weights(wide, tmp_path / "b")
    manifests = [bitbrush.read_manifest(tmp_path / name) for name in "ab"]
    assert manifests[0]["denoiser"] == manifests[1]["denoiser"]
    images = [bitbrush.load(tmp_path / name, runtime="reference") for name in "ab"]
    assert not lazy_layers(images[0].unet)
    assert not lazy_layers(lean.pipeline().unet)


def test_a_single_file_is_loaded_in_its_own_type(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    tiny_pipe.save_pretrained(tmp_path / "tiny")
    checkpoint = tmp_path / "tiny.safetensors"
    save_file(original_layout(tiny_pipe.to(torch.float16)), checkpoint)
    assert file_type(checkpoint) == torch.float16
    options = ModelOptions(config=str(tmp_path / "tiny"))
    lean, wide = load_source(checkpoint, options, offload=Offload(tmp_path)), load_full_precision(checkpoint, options)
    assert model_digest(lean) == model_digest(wide)
    networks = [part for part in lean.components.values() if isinstance(part, nn.Module)]
    assert {one.dtype for part in networks for one in part.parameters()} == {torch.float32}


def test_variants_have_types_of_their_own(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    tiny_pipe.unet.save_pretrained(tmp_path)
    assert folder_type(tmp_path, None) == torch.float32
    tiny_pipe.unet.to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    assert (folder_type(tmp_path, None), folder_type(tmp_path, "fp16")) == (torch.float32, torch.float16)
    assert folder_type(tmp_path / "none", None) == torch.float32
    assert (tmp_path / WEIGHTS).exists()


def test_a_lora_is_fused_before_the_weights_are_put_away(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    tiny_pipe.to(torch.float16).save_pretrained(tmp_path / "model")
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    factors = {f"{layer}.lora_A.weight": torch.ones(2, 16), f"{layer}.lora_B.weight": torch.full((16, 2), 0.1)}
    save_file(factors, tmp_path / "lora.safetensors")
    options = ModelOptions(loras=(Lora(tmp_path / "lora.safetensors"),))
    lean = load_source(tmp_path / "model", options, offload=Offload(tmp_path))
    assert model_digest(lean) == model_digest(load_full_precision(tmp_path / "model", options))
    assert model_digest(lean) != model_digest(load_full_precision(tmp_path / "model"))
