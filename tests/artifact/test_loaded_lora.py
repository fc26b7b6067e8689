"""LoRAs on loaded pipelines by diffusers' own methods: the images of full precision with the same LoRA."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

import bitbrush
from bitbrush.runtime.interface import RuntimeUnavailable
from tests.artifact.pipelines import CASES, PIXELS, PROMPTS, Case, pipeline, quantized
from tests.runtime.loras import as_diffusers, as_kohya, random_lora, scaled_sum

pytest.importorskip("peft", reason="the extra 'lora' is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")

TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj")
RUNTIMES = {"reference": "float32", "onednn": "float32", "onednn-bfloat16": "bfloat16"}


@pytest.fixture(scope="module")
def folder(_one_tiny_pipe: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All layers quantized, so that every block is fused."""
    recipe = bitbrush.METHODS["one-shot"].recipe({"steps": 3, "num_prompts": 2, "activations": 12})
    quantization = bitbrush.quantize(_one_tiny_pipe, recipe, ("a red cat", "two blue dogs"))
    return bitbrush.save(quantization, tmp_path_factory.mktemp("saved") / "artifact", base_model="someone/tiny")


def loaded(folder: Path, runtime: str) -> Any:
    try:
        return bitbrush.load(folder, runtime=runtime.partition("-")[0], dtype=RUNTIMES[runtime])
    except RuntimeUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(params=list(RUNTIMES))
def pipe(request: pytest.FixtureRequest, folder: Path) -> Any:
    return loaded(folder, request.param)


def latents(pipe: Any, **arguments: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = {"height": PIXELS, "width": PIXELS}
    y: Tensor = pipe("a cat", num_inference_steps=3, generator=generator, output_type="latent", **size, **arguments)[0]
    return y.float()


def apart(y: Tensor, expected: Tensor) -> float:
    return float((y - expected).norm() / expected.norm())


def of_unet(pipe: Any, strength: float = 0.2, seed: int = 0) -> dict[str, Tensor]:
    return random_lora(pipe.unet, strength=strength, seed=seed)


def of_text(pipe: Any) -> dict[str, Tensor]:
    """Layers are named as files name them, whatever the version of transformers."""
    lora = random_lora(pipe.text_encoder, strength=0.5, prefix="text_encoder", layers=lambda n: n.endswith(TEXT_LAYERS))
    return {key.replace("text_encoder.encoder", "text_encoder.text_model.encoder"): x for key, x in lora.items()}


LAYOUTS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "peft": dict,
    "diffusers": as_diffusers,
    "kohya": lambda lora: as_kohya(lora, alpha=2.0),
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_files_of_each_layout_do_what_they_do_in_full_precision(
    layout: str, pipe: Any, tiny_pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    """Of the denoiser and the text encoder in one file."""
    lora = of_unet(tiny_pipe) | of_text(tiny_pipe)
    save_file({key: x.contiguous() for key, x in LAYOUTS[layout](lora).items()}, tmp_path / "style.safetensors")
    without = apart(latents(pipe), latents(tiny_pipe))
    before, text = latents(tiny_pipe), tiny_pipe.encode_prompt("a cat", "cpu", 1, False)[0]
    for one in (pipe, tiny_pipe):
        one.load_lora_weights(str(tmp_path), weight_name="style.safetensors", adapter_name="style")
    assert apart(tiny_pipe.encode_prompt("a cat", "cpu", 1, False)[0].detach(), text.detach()) > 0.01
    expected = latents(tiny_pipe)
    assert apart(expected, before) > 5 * without
    assert apart(latents(pipe), expected) < 1.5 * without


def test_diffusers_own_loader_takes_one(folder: Path, tiny_pipe: StableDiffusionPipeline) -> None:
    import diffusers

    pipe, lora = diffusers.DiffusionPipeline.from_pretrained(folder), of_unet(tiny_pipe)
    pipe.set_progress_bar_config(disable=True)
    own = bitbrush.load(folder)
    for one in (pipe, own):
        one.load_lora_weights(dict(lora))
    assert torch.equal(latents(pipe), latents(own))


def test_pipelines_methods_work_as_ever(pipe: Any, tiny_pipe: StableDiffusionPipeline) -> None:
    before = latents(pipe)
    first, second = of_unet(tiny_pipe), of_unet(tiny_pipe, seed=1)
    pipe.load_lora_weights(dict(first), adapter_name="first")
    one = latents(pipe)
    pipe.load_lora_weights(dict(second), adapter_name="second")
    pipe.set_adapters(["first", "second"], [0.7, 0.3])
    both = latents(pipe)
    assert pipe.get_list_adapters() == {"unet": ["first", "second"]}
    pipe.disable_lora()
    assert torch.equal(latents(pipe), before)
    pipe.enable_lora()
    pipe.delete_adapters("second")
    pipe.set_adapters("first", 1.0)
    assert torch.equal(latents(pipe), one)
    pipe.unload_lora_weights()
    assert torch.equal(latents(pipe), before)
    pipe.load_lora_weights(scaled_sum(first, 0.7, second, 0.3))
    assert apart(latents(pipe), both) < 0.02


def test_fusing_is_refused_and_that_of_the_text_encoder_is_not(pipe: Any, tiny_pipe: StableDiffusionPipeline) -> None:
    pipe.load_lora_weights(of_unet(tiny_pipe) | of_text(tiny_pipe))
    before = latents(pipe)
    with pytest.raises(ValueError, match=r"leave it loaded.*components=\['text_encoder'\]"):
        pipe.fuse_lora()
    pipe.fuse_lora(components=["text_encoder"])
    assert apart(latents(pipe), before) < 0.05


def test_a_pipeline_is_not_saved_with_one(pipe: Any, tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    pipe.load_lora_weights(of_unet(tiny_pipe))
    with pytest.raises(ValueError, match=r"has an adapter .*unload it first"):
        pipe.save_pretrained(tmp_path / "again")
    with pytest.raises(ValueError, match="quantized"):
        bitbrush.quantize(pipe, bitbrush.METHODS["rtn"].recipe({"steps": 2, "num_prompts": 1}), ("a cat",))


def test_threads_share_a_pipelines_adapters(folder: Path, tiny_pipe: StableDiffusionPipeline) -> None:
    pipe = loaded(folder, "onednn")
    pipe.load_lora_weights(of_unet(tiny_pipe))
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 16)

    def call() -> Tensor:
        with torch.no_grad():
            y: Tensor = pipe.unet(x, 500, text).sample
        return y

    expected, results = call(), list[Tensor]()
    threads = [threading.Thread(target=lambda: results.append(call())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [torch.equal(result, expected) for result in results] == [True] * 3


FAMILIES = {"sdxl": CASES["sdxl-turbo"], "sd3": CASES["sd3"], "flux": CASES["flux-schnell"]}


def denoiser_of(pipe: Any) -> tuple[str, nn.Module]:
    return ("unet", pipe.unet) if hasattr(pipe, "unet") else ("transformer", pipe.transformer)


def output(case: Case, pipe: Any) -> Tensor:
    arguments = case.keys.get("pipeline_arguments", {}) | {"guidance_scale": case.keys["guidance_scale"]}
    generator = torch.Generator().manual_seed(0)
    y: Tensor = pipe(PROMPTS[0], num_inference_steps=2, generator=generator, output_type="latent", **arguments)[0]
    return y.float()


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_family_with_a_loader_computes_what_full_precision_does(name: str, tmp_path: Path) -> None:
    case = FAMILIES[name]
    exact = pipeline(case)
    quantization = quantized(case, exact, rounding="nearest", steps=2, activations=12)
    folder = bitbrush.save(quantization, tmp_path / "artifact", base_model="someone/tiny")
    prefix, network = denoiser_of(exact)
    lora = random_lora(network, strength=0.3, prefix=prefix)
    before = output(case, exact)
    plain = {runtime: (pipe := loaded(folder, runtime), output(case, pipe)) for runtime in ("reference", "onednn")}
    exact.load_lora_weights(dict(lora))
    expected = output(case, exact)
    for pipe, own in plain.values():
        without = apart(own, before)
        pipe.load_lora_weights(dict(lora))
        assert apart(expected, before) > 2 * without
        assert apart(output(case, pipe), expected) < 1.5 * without + 0.01
        pipe.unload_lora_weights()
        assert torch.equal(output(case, pipe), own)
