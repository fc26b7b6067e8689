"""Compares images of an artifact with those of its full-precision model, pair by pair from the same noise.

Run: python examples/compare_images.py [DIRECTORY], after quantize_and_save.py

`bitbrush compare` and `bitbrush bench` do the same with more metrics; here the metrics are called from Python.
"""

import sys

import numpy as np
import torch

import bitbrush
from bitbrush.bench.metrics.interval import bootstrap_mean
from bitbrush.bench.metrics.psnr import psnr
from bitbrush.bench.metrics.ssim import ssim
from bitbrush.zoo import prompt_set

PROMPTS = list(prompt_set("emoji-sd", "coco", "test")[:4])


def images(pipe):
    """Returns an image of each prompt as uint8 of shape (N, H, W, 3)."""
    noise = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    result = pipe(PROMPTS, num_inference_steps=10, generator=noise, output_type="np")
    return np.round(result.images * 255).astype(np.uint8)


directory = sys.argv[1] if len(sys.argv) > 1 else "apple"
reference = images(bitbrush.load_full_precision("emoji-sd"))
candidate = images(bitbrush.load(directory))
for name, metric in (("PSNR", psnr), ("SSIM", ssim)):
    found = bootstrap_mean(metric(reference, candidate))
    print(f"{name}: {found.mean:.3f} (95 % interval {found.low:.3f} to {found.high:.3f}, {found.n} pairs)")
