"""Registers metrics of one's own: one of pairs, one of single images. `bench` shows them like its own.

Run: python examples/custom_metric.py, after quantize_and_save.py
"""

import numpy as np

import bitbrush


def largest_error(reference, candidate):
    """Returns the largest difference of two pixels of each pair, 0 to 255."""
    return np.abs(reference.astype(int) - candidate).max(axis=(1, 2, 3))


def saturation(images):
    """Returns the mean difference of the strongest and the weakest channel of each image, 0 to 255."""
    return np.ptp(images, axis=3).mean(axis=(1, 2))


bitbrush.register_metric(bitbrush.PairedMetric("largest error", largest_error, higher_is_better=False))
bitbrush.register_metric(bitbrush.ImageMetric("saturation", saturation))

results = bitbrush.benchmark("emoji-sd", {"apple": "apple"}, "metric-bench", prompts=["coco"], num_images=3, steps=4)
(candidate,) = results["candidates"]
for name in ("largest error", "saturation", "saturation, difference"):
    figure = candidate["sets"]["coco"]["figures"][name]
    print(f"{name}: {figure['mean']:.1f} (95 % interval {figure['low']:.1f} to {figure['high']:.1f})")
