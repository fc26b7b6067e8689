"""LoRAs on the bundled models: the artifact loses no more with one than without, and swapping leaks no memory."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import bitbrush
from bitbrush.bench.metrics.psnr import psnr
from bitbrush.session.memory import resident_memory
from tests.runtime.loras import attention, random_lora

pytest.importorskip("peft", reason="the extra 'lora' is not installed")
pytestmark = pytest.mark.slow

PROMPT_TEXTS = ("a large red apple on a blue background", "a small green tree", "two yellow stars", "a purple car")
STEPS = 8
STRENGTH = 0.4


def attention_and_convolutions(name: str) -> bool:
    return attention(name) or name.endswith((".conv1", ".conv2"))


def images(pipe: Any) -> NDArray[np.uint8]:
    pipe.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPT_TEXTS))]
    made = pipe(list(PROMPT_TEXTS), num_inference_steps=STEPS, generator=noise, output_type="np").images
    pixels: NDArray[np.uint8] = (255 * made).round().astype(np.uint8)
    return pixels


def quantized(name: str, folder: Path) -> tuple[Any, Path]:
    pipe = bitbrush.load_full_precision(name)
    recipe = bitbrush.METHODS["pcr"].recipe({"steps": STEPS, "num_prompts": 8, "rounding": "nearest"})
    quantization = bitbrush.quantize(pipe, recipe, PROMPT_TEXTS * 2)
    return pipe, bitbrush.save(quantization, folder / name, base_model=name)


@pytest.mark.parametrize("name", ["emoji-sd", "emoji-sdxl"])
def test_the_error_is_that_without_one(name: str, tmp_path: Path) -> None:
    exact, folder = quantized(name, tmp_path)
    lora = random_lora(exact.unet, strength=STRENGTH, rank=8, layers=attention_and_convolutions)
    ours = {
        runtime: bitbrush.load(folder, runtime=runtime, dtype="float32" if runtime == "reference" else "bfloat16")
        for runtime in ("reference", "onednn")
    }
    before = images(exact)
    first = {runtime: images(pipe) for runtime, pipe in ours.items()}
    for pipe in (exact, *ours.values()):
        pipe.load_lora_weights(dict(lora))
    styled = images(exact)
    effect = psnr(before, styled).mean()
    for runtime, pipe in ours.items():
        without, with_it = psnr(before, first[runtime]).mean(), psnr(styled, images(pipe)).mean()
        assert effect < without - 2
        assert with_it > without - 1
        pipe.unload_lora_weights()
        assert np.array_equal(images(pipe), first[runtime])


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_swapping_for_fifty_generations_needs_no_more_memory(tmp_path: Path) -> None:
    exact, folder = quantized("emoji-sd", tmp_path)
    loras = [random_lora(exact.unet, strength=STRENGTH, rank=32, seed=seed) for seed in range(2)]
    pipe, sizes = bitbrush.load(folder, runtime="onednn"), []
    pipe.set_progress_bar_config(disable=True)
    for number in range(50):
        pipe.load_lora_weights(dict(loras[number % 2]), adapter_name=f"style-{number}")
        pipe("a tree", num_inference_steps=1, output_type="latent")
        if number % 3:
            pipe.unload_lora_weights()
        else:
            pipe.unet.delete_adapters(f"style-{number}")
        gc.collect()
        sizes.append(resident_memory())
    adapter = sum(tensor.nbytes for tensor in loras[0].values())
    assert max(sizes[10:]) - max(sizes[:10]) < adapter
