"""Inputs that an artifact clips by itself, with a LoRA, and with another guidance than calibrated.

    python benchmarks/clipping.py

``emoji-sd`` by ``pcr`` with 8 steps, one prompt; a random LoRA of rank 8 in every layer, 0.4 times as strong as the
weights. Prints the largest share of clipped inputs of a layer at a step, and how many layers clip more than 1 %.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

import bitbrush
from bitbrush.zoo import prompt_set

sys.path.insert(0, str(Path(__file__).parents[1]))
MODEL, STEPS, GUIDANCE = "emoji-sd", 8, 15.0
PROMPT = "a large red apple on a blue background"


def main() -> None:
    from tests.runtime.loras import random_lora

    full = bitbrush.load_full_precision(MODEL)
    prompts = prompt_set(MODEL, "coco", "calibration")
    pipe: Any = bitbrush.quantize(full, prompts, method="pcr", steps=STEPS).pipeline()
    print_clipped("by itself", pipe)
    print_clipped(f"guidance {GUIDANCE:g}", pipe, guidance_scale=GUIDANCE)
    pipe.load_lora_weights(random_lora(full.unet, strength=0.4, rank=8))
    print_clipped("with the LoRA", pipe)


def print_clipped(name: str, pipe: Any, **arguments: Any) -> None:
    """Generates one image and prints a line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # its figures are printed
        with bitbrush.watch(pipe) as clipped:
            pipe(PROMPT, num_inference_steps=STEPS, output_type="latent", **arguments)
    shares = clipped.shares()
    most = max(share for steps in shares.values() for share in steps.values())
    print(f"{name}: at most {most:.2%}; {len(clipped.many())} of {len(shares)} layers beyond 1%", flush=True)


if __name__ == "__main__":
    main()
