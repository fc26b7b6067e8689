"""The table of methods: bit settings x recipes on held-out prompts of both styles, paired with full precision.

    python benchmarks/methods.py run            # resumable; start it twice to use two cores
    python benchmarks/methods.py table          # prints the tables and writes benchmarks/results/methods-emoji-sd.json
    python benchmarks/methods.py plot           # from that file, the error over the steps: docs/plots/

Every (bits, recipe) is one file in the work directory, claimed by creating it, so several processes share the work
and a killed run goes on where it stopped (remove its empty file). Each process runs on one thread.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import save_file

import bitbrush
from bitbrush import Quantization, Recipe
from bitbrush.bench.generation import Generated, generate
from bitbrush.bench.metrics.interval import bootstrap_difference, bootstrap_mean
from bitbrush.bench.metrics.latent_mse import latent_mse
from bitbrush.bench.metrics.psnr import psnr
from bitbrush.bench.plot_scales import Axis, Scale
from bitbrush.bench.plots import STEP_AXIS, Series, line_plot
from bitbrush.numerics.weights import QuantizedWeight, WeightGrid
from bitbrush.rounding.nearest import RoundedLayer
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import PromptBatch, prompt_batches
from bitbrush.zoo import prompt_set

MODEL = "emoji-sd"
WORK = Path("benchmarks/work")
RESULTS = Path("benchmarks/results/methods-emoji-sd.json")
PLOTS = Path("docs/plots")
NUM_PROMPTS = 64
BATCH_SIZE = 32
STYLES = ("coco", "sdp")
TEST_SEED = 1
BITS = ((4, 8), (8, 6), (8, 8), (4, 6), (4, 4))
RECIPES = ("rtn", "one-shot", "progressive", "progressive, x0 relaxed", "progressive, xT relaxed")
NEAREST = "progressive, x0 relaxed, nearest rounding"


@dataclass(frozen=True)
class Setting:
    weights: int
    activations: int
    recipe: str

    @property
    def name(self) -> str:
        return f"W{self.weights}A{self.activations} {self.recipe}"

    @property
    def path(self) -> Path:
        return WORK / f"{self.name.replace(' ', '_').replace(',', '')}.json"

    @property
    def full_recipe(self) -> Recipe:
        """All but rtn share the learned rounding, so that they differ in their activations alone."""
        bits = {"weights": self.weights, "activations": self.activations}
        rounding = "nearest" if self.recipe == NEAREST else "learned"
        interval = "0.8:1" if "x0" in self.recipe else "0:0.2"
        relax = f"{interval}@{self.activations + 2}" if "relaxed" in self.recipe else "none"
        match self.recipe:
            case "rtn":
                return bitbrush.METHODS["rtn"].recipe(bits)
            case "one-shot":
                return bitbrush.METHODS["one-shot"].recipe({**bits, "rounding": rounding})
            case _:
                return bitbrush.METHODS["pcr"].recipe({**bits, "rounding": rounding, "relax": relax})


def settings() -> Iterator[Setting]:
    for weights, activations in BITS:
        for recipe in RECIPES:
            yield Setting(weights, activations, recipe)
        if (weights, activations) == (4, 8):
            yield Setting(weights, activations, NEAREST)


class Bench:
    """What all settings share: the pipeline, the prompts, the full-precision images."""

    def __init__(self) -> None:
        self.pipe: DiffusionPipeline = bitbrush.load_full_precision(MODEL)
        self.plan = SamplingPlan()
        self.batches: dict[str, list[PromptBatch]] = {
            style: prompt_batches(prompt_set(MODEL, style, "test")[:NUM_PROMPTS], TEST_SEED, BATCH_SIZE)
            for style in STYLES
        }
        self.reference = {style: self._cached(f"reference_{style}", batches) for style, batches in self.batches.items()}

    def _cached(self, name: str, batches: list[PromptBatch]) -> Generated:
        path = WORK / f"{name}.npz"
        if not path.exists():
            generated = generate(self.pipe, batches, self.plan)
            partial = path.with_suffix(f".{os.getpid()}.npz")
            np.savez(partial, images=generated.images, steps=generated.steps)
            partial.replace(path)
        with np.load(path) as arrays:
            return Generated(arrays["images"], arrays["steps"])

    def quantize(self, recipe: Recipe) -> Quantization:
        """Weights are rounded once per bit width and rounding, and kept on disk for all processes."""
        prompts = prompt_set(MODEL, "coco", "calibration")
        path = WORK / f"weights_{recipe.weights}_{recipe.weight_range}_{recipe.rounding}.safetensors"
        if path.exists():
            return bitbrush.quantize(self.pipe, recipe, prompts, rounded=_read_weights(path))
        quantization = bitbrush.quantize(self.pipe, recipe, prompts)
        _write_weights(quantization.rounded, path)
        return quantization

    def measure(self, setting: Setting) -> dict[str, Any]:
        pipe = self.quantize(setting.full_recipe).pipeline()
        return {
            style: self.compare(style, generate(pipe, batches, self.plan)) for style, batches in self.batches.items()
        }

    def compare(self, style: str, candidate: Generated) -> dict[str, Any]:
        reference = self.reference[style]
        steps = range(reference.steps.shape[1])
        return {
            "psnr": psnr(reference.images, candidate.images).tolist(),
            "latent_mse": latent_mse(reference.latents, candidate.latents).tolist(),
            "latent_mse_by_step": [
                float(latent_mse(reference.steps[:, t], candidate.steps[:, t]).mean()) for t in steps
            ],
        }

    def other_seed(self) -> dict[str, Any]:
        """The full-precision model with other noise: how far apart two right answers are."""
        results = {}
        for style in self.batches:
            prompts = prompt_set(MODEL, style, "test")[:NUM_PROMPTS]
            other = self._cached(f"other_{style}", prompt_batches(prompts, TEST_SEED + 1, BATCH_SIZE))
            results[style] = self.compare(style, other)
        return results


def _write_weights(rounded: dict[str, RoundedLayer], path: Path) -> None:
    tensors, bits = {}, {}
    for name, layer in rounded.items():
        tensors |= {f"{name}|w_q": layer.weight.w_q, f"{name}|scale": layer.weight.grid.scale}
        tensors[f"{name}|zero_point"] = layer.weight.grid.zero_point
        if layer.bias is not None:
            tensors[f"{name}|bias"] = layer.bias
        bits[name] = str(layer.weight.grid.bits)
    partial = path.with_suffix(f".{os.getpid()}")
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, partial, metadata=bits)
    partial.replace(path)


def _read_weights(path: Path) -> dict[str, RoundedLayer]:
    rounded = {}
    with safe_open(path, "pt") as file:
        keys = set(file.keys())
        for name, width in file.metadata().items():
            grid = WeightGrid(file.get_tensor(f"{name}|scale"), file.get_tensor(f"{name}|zero_point"), int(width))
            bias = file.get_tensor(f"{name}|bias") if f"{name}|bias" in keys else None
            rounded[name] = RoundedLayer(QuantizedWeight(file.get_tensor(f"{name}|w_q"), grid), bias)
    return rounded


def run() -> None:
    torch.set_num_threads(1)
    WORK.mkdir(parents=True, exist_ok=True)
    bench = Bench()
    jobs: list[tuple[str, Path, Callable[[], dict[str, Any]]]] = [
        (s.name, s.path, lambda s=s: bench.measure(s))
        for s in settings()  # type: ignore[misc]
    ]
    jobs.append(("other seed", WORK / "other_seed.json", bench.other_seed))
    for name, path, work in jobs:
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            continue
        result = work()
        path.write_text(json.dumps(result))
        print(
            f"{name}: " + ", ".join(f"{style} {np.mean(r['psnr']):.2f} dB" for style, r in result.items()), flush=True
        )


def table() -> None:
    results: dict[str, Any] = {}
    print("| bits | recipe | coco PSNR, dB | coco latent MSE | sdp PSNR, dB | sdp latent MSE |")
    print("|---|---|---|---|---|---|")
    rows = [(s, s.path) for s in settings()]
    for setting, path in [*rows, (None, WORK / "other_seed.json")]:
        if not path.exists() or not path.stat().st_size:
            continue
        result = json.loads(path.read_text())
        label = f"W{setting.weights}A{setting.activations} | {setting.recipe}" if setting else "float | another seed"
        cells = []
        for style in STYLES:
            for metric, digits in (("psnr", 2), ("latent_mse", 3)):
                i = bootstrap_mean(np.array(result[style][metric]))
                cells.append(f"{i.mean:.{digits}f} ({i.low:.{digits}f} to {i.high:.{digits}f})")
        print(f"| {label} | " + " | ".join(cells) + " |")
        results[setting.name if setting else "other seed"] = result
    _print_differences(results)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"prompts": NUM_PROMPTS, "seed": TEST_SEED, "results": _rounded(results)}) + "\n")


def plot() -> None:
    """The error over the steps, both styles together, one picture per bit setting."""
    results = json.loads(RESULTS.read_text())["results"]
    PLOTS.mkdir(parents=True, exist_ok=True)
    for weights, activations in BITS:
        bits = f"W{weights}A{activations}"
        series = []
        for recipe in RECIPES:
            result = results[f"{bits} {recipe}"]
            errors = np.mean([result[style]["latent_mse_by_step"] for style in STYLES], axis=0)
            series.append(Series(recipe, list(range(len(errors))), errors.tolist()))
        axis = Axis("latent MSE", Scale.LOG)
        svg = line_plot(series, title=f"{bits}: distance to full precision", x_axis=STEP_AXIS, y_axis=axis)
        (PLOTS / f"error-by-step-{bits}.svg").write_text(svg)


def _print_differences(results: dict[str, Any]) -> None:
    """What each idea adds, paired over all prompts of both styles."""
    print("\n| bits | difference in PSNR, dB | mean (95 % interval) |\n|---|---|---|")
    pairs = [("one-shot", "rtn"), ("progressive", "one-shot"), (RECIPES[3], "progressive"), (RECIPES[4], "progressive")]
    for weights, activations in BITS:
        bits = f"W{weights}A{activations}"
        extra = [(RECIPES[3], NEAREST)] if f"{bits} {NEAREST}" in results else []
        for better, base in [*pairs, *extra]:
            if f"{bits} {better}" not in results or f"{bits} {base}" not in results:
                continue
            a, b = (np.concatenate([results[f"{bits} {r}"][s]["psnr"] for s in STYLES]) for r in (base, better))
            i = bootstrap_difference(a, b)
            print(f"| {bits} | {better} - {base} | {i.mean:+.2f} ({i.low:+.2f} to {i.high:+.2f}) |")


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return float(f"{value:.4g}")
        case list():
            return [_rounded(item) for item in value]
        case dict():
            return {key: _rounded(item) for key, item in value.items()}
        case _:
            return value


if __name__ == "__main__":
    {"run": run, "table": table, "plot": plot}[sys.argv[1] if len(sys.argv) > 1 else "run"]()
