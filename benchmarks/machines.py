"""How far images of one prompt and seed move between processors: emoji-sd, W4A8.

    python -m benchmarks.machines --method best      # prints Markdown
    python -m benchmarks.machines --method best --output benchmarks/results/machines-emoji-sd.json

One machine stands for two: instructions are limited to AVX2 by the environment, as on a processor that has no others.
Sums are then added up in another order. PSNR between images of the same prompt and seed, from three pairs of runs: full
precision on both; one artifact on both; and an artifact that each made for itself, as two readers do.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

import bitbrush
from bitbrush.bench.images.generation import generate
from bitbrush.bench.metrics.interval import bootstrap_mean, median_interval
from bitbrush.bench.metrics.psnr import psnr
from bitbrush.bench.metrics.ssim import ssim
from bitbrush.methods.recipe import Recipe
from bitbrush.timeline.trajectory import prompt_batches
from bitbrush.zoo import prompt_set

MODEL = "emoji-sd"
PROCESSORS = {
    "all instructions": {},
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}
SEED, BATCH_SIZE = 1, 16


def quantize(method: str, artifact: Path) -> None:
    pipe = bitbrush.load_full_precision(MODEL)
    bitbrush.quantize(pipe, prompt_set(MODEL, "coco", "calibration"), method=method, weights=4, activations=8).save(
        artifact
    )


def make_images(source: str, count: int, path: Path) -> None:
    pipe = bitbrush.load_full_precision(MODEL) if source == MODEL else bitbrush.load(source)
    batches = prompt_batches(prompt_set(MODEL, "coco", "test")[:count], SEED, BATCH_SIZE)
    np.save(path, generate(pipe, batches, Recipe().plan).images)


def run(processor: str, *task: object) -> None:
    command = [sys.executable, "-m", "benchmarks.machines", *map(str, task)]
    subprocess.run(command, env={**os.environ, **PROCESSORS[processor]}, check=True)


def comparisons(method: str, count: int, folder: Path) -> Iterator[tuple[str, dict[str, object]]]:
    first, second = PROCESSORS
    artifacts = {processor: folder / f"artifact-{index}" for index, processor in enumerate(PROCESSORS)}
    for processor, artifact in artifacts.items():
        run(processor, "--quantize", method, artifact)
    runs = {
        "full precision": ((first, MODEL), (second, MODEL)),
        "one artifact": ((first, artifacts[first]), (second, artifacts[first])),
        "each its own artifact": ((first, artifacts[first]), (second, artifacts[second])),
    }
    images = {}
    for key in dict.fromkeys(key for pair in runs.values() for key in pair):
        path = folder / "images.npy"
        run(key[0], "--images", count, "--generate", key[1], path)
        images[key] = np.load(path)
    for name, (ours, theirs) in runs.items():
        yield name, figures(images[ours], images[theirs])


def figures(ours: np.ndarray, theirs: np.ndarray) -> dict[str, object]:
    fidelity, similarity = psnr(ours, theirs), ssim(ours, theirs)
    return {
        "psnr": asdict(bootstrap_mean(fidelity)),
        "psnr_median": median_interval(fidelity)[0],
        "psnr_lowest": float(fidelity.min()),
        "ssim_lowest": float(similarity.min()),
        "identical": int((fidelity >= 100).sum()),
        "psnr_by_image": [round(float(value), 2) for value in fidelity],
    }


def markdown(document: dict[str, dict[str, object]]) -> str:
    lines = ["| | PSNR, dB | median | lowest | lowest SSIM |", "|---|---|---|---|---|"]
    for name, row in document.items():
        mean = row["psnr"]
        interval = f"{mean['mean']:.1f} ({mean['low']:.1f} to {mean['high']:.1f})"
        others = f"{row['psnr_median']:.1f} | {row['psnr_lowest']:.1f} | {row['ssim_lowest']:.3f}"
        lines.append(f"| {name} | {interval} | {others} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="best")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--quantize", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--generate", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.quantize:
        quantize(given.quantize[0], Path(given.quantize[1]))
    elif given.generate:
        make_images(given.generate[0], given.images, Path(given.generate[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            document = dict(comparisons(given.method, given.images, Path(folder)))
        if given.output:
            record = {"model": MODEL, "method": given.method, "processors": PROCESSORS, "comparisons": document}
            given.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(markdown(document))


if __name__ == "__main__":
    main()
