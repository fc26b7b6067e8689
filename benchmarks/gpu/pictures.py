"""Whole pictures of ``emoji-sd`` by a runtime against the reference: ``python -m gpu.pictures RUNTIME STEPS``.

Prints the median PSNR in decibels as JSON. One-shot W8A8 with the last fifth of the steps relaxed.
"""

import json
import sys
import tempfile

import numpy as np

import bitbrush
from bitbrush.bench.images.generation import generate
from bitbrush.bench.metrics.psnr import psnr
from bitbrush.timeline.trajectory import prompt_batches
from bitbrush.zoo import prompt_set

MODEL, PROMPTS, SEED = "emoji-sd", 4, 1


def main() -> None:
    runtime, steps = sys.argv[1], int(sys.argv[2])
    prompts = prompt_set(MODEL, "coco", "test")[:PROMPTS]
    recipe = bitbrush.METHODS["one-shot"].recipe(
        {"weights": 8, "relax": "0.8:1@10", "steps": steps, "num_prompts": PROMPTS, "batch_size": PROMPTS}
    )
    quantization = bitbrush.quantize(bitbrush.load_full_precision(MODEL), recipe, prompts)
    with tempfile.TemporaryDirectory() as scratch:
        folder = bitbrush.save(quantization, f"{scratch}/artifact", base_model=MODEL)
        made = {
            name: generate(bitbrush.load(folder, runtime=name), prompt_batches(prompts, SEED, PROMPTS), recipe.plan)
            for name in ("reference", runtime)
        }
    decibels = psnr(made[runtime].images, made["reference"].images)
    print(json.dumps({"runtime": runtime, "steps": steps, "psnr": round(float(np.median(decibels)), 1)}))


if __name__ == "__main__":
    main()
