"""What artifacts that several processes made have in common with a single process's.

    bitbrush quantize emoji-sd -o single --method pcr --steps 20
    torchrun --nproc-per-node 2 -m bitbrush quantize emoji-sd -o shared --method pcr --steps 20
    python benchmarks/ranks.py single shared

prints, for every artifact but the first: the share of integer weights that differ from the first's, how far apart the
scales of weights and activations are, and for all of them the PSNR of the final latents to full precision's, on 16
held-out prompts under the plan of the first; the peak is the range of each prompt's full-precision latents.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

import bitbrush
from bitbrush.artifact.denoiser import WEIGHTS
from bitbrush.artifact.tensors import layer_from_tensors
from bitbrush.bench.images.generation import generate
from bitbrush.methods.recipe import Recipe
from bitbrush.network.layers import QuantizedLayer
from bitbrush.sources.schedulers import with_scheduler
from bitbrush.timeline.trajectory import prompt_batches
from bitbrush.zoo import prompt_set

PROMPTS = 16


def layers_of(folder: Path) -> list[QuantizedLayer]:
    manifest = bitbrush.read_manifest(folder)
    tensors = load_file(folder / manifest["denoiser"]["component"] / WEIGHTS)
    kept = [entry for entry in manifest["layers"] if entry["excluded"] is None]
    return [layer_from_tensors(one["name"], tuple(one["shape"]), one["weight_bits"], tensors) for one in kept]


def differences(first: Path, other: Path) -> str:
    """Share of integers, median and greatest relative difference of weight and activation scales."""
    unlike, weights, activations = [], [], []
    for ours, theirs in zip(layers_of(first), layers_of(other), strict=True):
        unlike.append((ours.weight.w_q != theirs.weight.w_q).flatten())
        weights.append(ours.weight.qparams.scale / theirs.weight.qparams.scale - 1)
        all_qparams = zip(ours.activations.qparams, theirs.activations.qparams, strict=True)
        activations.append(torch.tensor([a.scale / b.scale - 1 for a, b in all_qparams]))
    text = f"{float(torch.cat(unlike).float().mean()):.4f} of the integers differ"
    for name, off in (("weight", torch.cat(weights).abs()), ("activation", torch.cat(activations).abs())):
        text += f"; {name} scales by {float(off.median()):.5f} (median), {float(off.max()):.3f} (most)"
    return text


def psnr(reference: np.ndarray, latents: np.ndarray) -> np.ndarray:
    """Of each prompt, dB; the peak is the range of the reference."""
    a, b = (one.reshape(len(one), -1).astype(np.float64) for one in (reference, latents))
    return 10 * np.log10(np.square(a.max(1) - a.min(1)) / np.square(a - b).mean(1))


def main(folders: list[Path]) -> None:
    recipe = Recipe().updated(bitbrush.read_manifest(folders[0])["recipe"])
    batches = prompt_batches(prompt_set("emoji-sd", "coco", "test")[:PROMPTS], 1, PROMPTS)
    full_precision = with_scheduler(bitbrush.load_full_precision("emoji-sd"), recipe.scheduler)
    full = generate(full_precision, batches, recipe.plan).latents
    for folder in folders:
        found = psnr(full, generate(bitbrush.load(folder, dtype="float32"), batches, recipe.plan).latents)
        error = found.std(ddof=1) / len(found) ** 0.5
        print(f"{folder}: PSNR {found.mean():.2f} +- {error:.2f} dB, median {np.median(found):.2f}", flush=True)
        if folder != folders[0]:
            print(f"  against {folders[0]}: {differences(folders[0], folder)}", flush=True)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
