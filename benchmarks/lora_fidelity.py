"""Fidelity of an artifact with a LoRA: loaded at run time, and fused before quantizing anew by the same method.

    python benchmarks/lora_fidelity.py --model emoji-sdxl --method dynamic --steps 4

Four prompts, a random LoRA of rank 8 for attention and convolutions, 0.4 times as strong as the weights. Prints PSNR
against full precision with the same LoRA, on the reference runtime.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bitbrush
from bitbrush.bench.metrics.psnr import psnr

sys.path.insert(0, str(Path(__file__).parents[1]))
PROMPTS = ("a large red apple on a blue background", "a small green tree", "two yellow stars", "a purple car")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji-sdxl")
    parser.add_argument("--method", default="dynamic")
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    from tests.runtime.loras import attention, random_lora

    def layers(name: str) -> bool:
        return attention(name) or name.endswith((".conv1", ".conv2"))

    def quantized() -> Any:
        return bitbrush.quantize(exact, PROMPTS[:1], method=options.method, steps=options.steps, num_prompts=1)

    exact: Any = bitbrush.load_full_precision(options.model)
    lora = random_lora(exact.unet, strength=0.4, rank=8, layers=layers)
    plain, ours = images(exact, options.steps), quantized().pipeline()
    print(f"without a LoRA: {psnr(plain, images(ours, options.steps)).mean():.1f} dB")
    for pipe in (exact, ours):
        pipe.load_lora_weights(dict(lora))
    styled = images(exact, options.steps)
    print(f"the LoRA changes full precision to {psnr(plain, styled).mean():.1f} dB")
    print(f"loaded at run time: {psnr(styled, images(ours, options.steps)).mean():.1f} dB")
    exact.fuse_lora()
    exact.unload_lora_weights()
    print(f"fused and quantized anew: {psnr(styled, images(quantized().pipeline(), options.steps)).mean():.1f} dB")


def images(pipe: Any, steps: int) -> Any:
    """Generates one image a prompt, as bytes."""
    pipe.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    made = pipe(list(PROMPTS), num_inference_steps=steps, generator=noise, output_type="np").images
    return (255 * made).round().astype(np.uint8)


if __name__ == "__main__":
    main()
