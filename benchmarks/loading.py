"""Loading by bitbrush.load and by diffusers' from_pretrained: time to load, time of a denoiser call, and the images.

python benchmarks/loading.py emoji-sd
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, PipelineQuantizationConfig

import bitbrush
from bitbrush.bench.experiments.evidence import timed
from bitbrush.network.families import denoiser_name
from bitbrush.sources.models import find_model

WAYS: dict[str, Callable[[Path], Any]] = {
    "bitbrush.load": bitbrush.load,
    "from_pretrained": DiffusionPipeline.from_pretrained,
}


def main() -> None:
    """Prints a row for each way to load, and the time to quantize while loading."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="emoji-sd")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder, "artifact")
        _quantize_on_load(options.model).save_pretrained(artifact)
        loading: dict[str, list[float]] = {name: [] for name in WAYS}
        calls: dict[str, list[float]] = {name: [] for name in WAYS}
        images = {}
        for _ in range(options.rounds):
            for name, load in WAYS.items():
                begin = time.process_time()
                pipe = load(artifact)
                loading[name].append(time.process_time() - begin)
                images[name] = _image(pipe, calls[name])
        for name in WAYS:
            print(
                f"{name:16} loads in {median(loading[name]):.2f} s, a denoiser call {1000 * median(calls[name]):.1f} ms"
            )
        first, second = images.values()
        print("images are equal:", bool(np.array_equal(first, second)))


def _quantize_on_load(model: str) -> Any:
    source = find_model(model)
    begin = time.process_time()
    config = PipelineQuantizationConfig(quant_mapping={"unet": bitbrush.BitbrushConfig(weights=4, activations=8)})
    pipe = DiffusionPipeline.from_pretrained(source, quantization_config=config)
    print(f"{'BitbrushConfig':16} quantizes and loads in {time.process_time() - begin:.2f} s")
    return pipe


def _image(pipe: Any, seconds: list[float]) -> Any:
    pipe.set_progress_bar_config(disable=True)
    with timed(getattr(pipe, denoiser_name(pipe)), clock=time.process_time) as times:
        generator = torch.Generator().manual_seed(0)
        image = pipe("a red apple", num_inference_steps=4, generator=generator, output_type="np").images
    seconds += times[1:]
    return image


if __name__ == "__main__":
    main()
