"""What one recipe key is worth: pcr with and without it, paired, on prompts that no other figure uses.

    python benchmarks/stages.py output_means=correct W4A8 W4A4      # half an hour on one core
    python benchmarks/stages.py "fine=time_embedding.*,*.time_emb_proj" W4A8 --prompts 24

Coco test prompts from 400 on of emoji-sd, 50 steps, oneDNN in float32 where a layer runs in integers. The ratio is the
geometric mean of the pictures' own: latent MSE with the key over without, its interval by bootstrap over the pictures.
"""

import argparse
import re
from typing import Any

import numpy as np
import torch
from measured_bits import MODEL, Bench
from numpy.typing import NDArray

import bitbrush
from bitbrush import Quantization
from bitbrush.bench.generation import Generated, generate
from bitbrush.bench.metrics.interval import bootstrap_mean
from bitbrush.bench.metrics.latent_mse import latent_mse
from bitbrush.bench.metrics.psnr import psnr
from bitbrush.network.output_correction import correct_output
from bitbrush.runtime.choose import RuntimeName, choose_runtime
from bitbrush.zoo import prompt_set

OF_THE_WEIGHTS = ("weights", "weight_range", "weight_allocation", "rounding", "exclude", "fine", "group_size")


def pictures(bench: Bench, made: Quantization) -> Generated:
    pipe = made.pipeline()
    pipe.unet = bitbrush.load_full_precision(MODEL).unet
    choose_runtime(RuntimeName.AUTO, dtype=torch.float32).runtime.lower(pipe.unet, made.outcome.layers)
    if made.outcome.correction is not None:
        correct_output(pipe.unet, made.outcome.correction)
    return generate(pipe, bench.batches, bench.plan)


def row(bits: str, name: str, reference: Generated, candidate: Generated) -> NDArray[np.float64]:
    decibels = psnr(reference.images, candidate.images)
    errors = np.asarray(latent_mse(reference.latents, candidate.latents))
    mean, error = bootstrap_mean(decibels), bootstrap_mean(errors)
    print(
        f"| {bits} | {name} | {mean.mean:.2f} ({mean.low:.2f} to {mean.high:.2f}) | {np.median(decibels):.2f} | "
        f"{error.mean:.4f} | {np.exp(np.log(errors).mean()):.5f} |",
        flush=True,
    )
    return errors


def compare(bench: Bench, bits: str, key: str, value: str) -> None:
    found = re.fullmatch(r"W(\d)A(\d+)", bits)
    if not found:
        raise SystemExit(f"bits are {bits!r}; expected e.g. W4A8")
    keys: dict[str, Any] = {"weights": int(found[1]), "activations": int(found[2])}
    prompts = prompt_set(MODEL, "coco", "calibration")
    pcr = bitbrush.METHODS["pcr"]
    without = bitbrush.quantize(bench.pipe, pcr.recipe(keys), prompts)
    kept = None if key in OF_THE_WEIGHTS else without.rounded
    own = int(value) if re.fullmatch(r"\d+", value) else value.split(",") if "*" in value else value
    with_key = bitbrush.quantize(bench.pipe, pcr.recipe({**keys, key: own}), prompts, rounded=kept)
    plain = row(bits, "pcr", bench.reference, pictures(bench, without))
    staged = row(bits, f"pcr, {key} = {value}", bench.reference, pictures(bench, with_key))
    logs = bootstrap_mean(np.log(staged / plain))
    low, mean, high = np.exp([logs.low, logs.mean, logs.high])
    print(f"\n{bits}: {mean:.2f} ({low:.2f} to {high:.2f}) times the latent MSE\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("key", help="KEY=VALUE of a recipe")
    parser.add_argument("bits", nargs="+")
    parser.add_argument("--prompts", type=int, default=16)
    given = parser.parse_args()
    key, equals, value = given.key.partition("=")
    if not equals:
        raise SystemExit(f"key is {given.key!r}; expected KEY=VALUE")
    bench = Bench(given.prompts)
    print("| bits | recipe | PSNR, dB | median | latent MSE | geometric mean |\n|---|---|---|---|---|---|")
    for bits in given.bits:
        compare(bench, bits, key, value)


if __name__ == "__main__":
    main()
