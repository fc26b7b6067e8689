"""Pictures of one artifact by each executor: how near to the reference's and to full precision's.

    bitbrush quantize emoji-sd -o DIR
    python benchmarks/executors.py DIR       # emoji-sd's 16 first test prompts of each style

Paired by noise; PSNR, median (mean). Executors differ by the order of float32 sums, which now and then tips a value to
the next integer.
"""

import sys

import numpy as np

import bitbrush
from bitbrush.bench.images.generation import Generated, generate
from bitbrush.bench.metrics.psnr import psnr
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import prompt_batches
from bitbrush.zoo import prompt_set

MODEL = "emoji-sd"
PROMPTS, SEED, BATCH_SIZE = 16, 1, 16
EXECUTORS = (
    {"runtime": "reference"},
    {"runtime": "onednn", "dtype": "float32"},
    {"runtime": "onednn", "dtype": "bfloat16"},
)


def main(artifact: str) -> None:
    prompts = [prompt for style in ("coco", "sdp") for prompt in prompt_set(MODEL, style, "test")[:PROMPTS]]
    batches, plan = prompt_batches(prompts, SEED, BATCH_SIZE), SamplingPlan()
    full = generate(bitbrush.load_full_precision(MODEL), batches, plan)
    reference: Generated | None = None
    for names in EXECUTORS:
        made = generate(bitbrush.load(artifact, **names), batches, plan)
        reference = reference or made
        print(
            f"{' '.join(names.values())}: {_told(full, made)} to full precision, {_told(reference, made)} to reference"
        )


def _told(one: Generated, other: Generated) -> str:
    decibels = psnr(one.images, other.images)
    return f"{np.median(decibels):.1f} ({np.mean(decibels):.1f}) dB"


if __name__ == "__main__":
    main(sys.argv[1])
