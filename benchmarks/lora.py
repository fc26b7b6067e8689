"""Cost of a LoRA on a loaded artifact: a denoiser call with and without it, and loading it.

    python benchmarks/lora.py --model sd15 --rank 16

Batch 2 (guidance), one core, oneDNN runtime. The LoRA has random factors for the attention layers, or with ``--all``
for all layers. Rounds alternate: a call without, loading, a call with, unloading. Medians of CPU time, so that a busy
machine matters less. Artifacts are those of benchmarks/unet_cpu.py, made on first use.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from cpu.artifact import Form, artifact
from cpu.models import MODELS, TIMESTEPS
from cpu.ours import Way, open_artifact
from cpu.subjects import Task, bound
from torch import Tensor

from bitbrush.network.lazy_weights import weight_shape
from bitbrush.runtime.faces import Face

ATTENTION = "to_q", "to_k", "to_v", "to_out.0"


def main() -> None:
    options = _options()
    options.scratch.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    model = MODELS[options.model]
    task = Task(model, model.latents[-1] if options.large else model.latents[0], options.scratch)
    denoiser = open_artifact(artifact(task, Form(8)), Way("onednn"))
    denoise = bound(denoiser, task, torch.bfloat16, torch.channels_last)
    lora = _random(denoiser.bitbrush_faces.faces, options.rank, "" if options.all else ATTENTION)

    def call() -> None:
        denoise(task.inputs.latents, float(TIMESTEPS[0]))

    def load() -> None:
        denoiser.load_lora_adapter(dict(lora), prefix=None)

    spent = _rounds(options.rounds, {"without": call, "loading": load, "with": call, "unloading": denoiser.unload_lora})
    without, loading, with_it, unloading = (statistics.median(one) for one in spent.values())
    where = "all" if options.all else "attention"
    print("| model | layers | a call without, ms | with, ms | speed | loading, ms | unloading, ms |")
    print("|---|---|---|---|---|---|---|")
    figures = f"{without:.0f} | {with_it:.0f} | {without / with_it:.2f} | {loading:.0f} | {unloading:.0f}"
    print(f"| {task.key} | {where} ({len(lora) // 2}), rank {options.rank} | {figures} |")


def _rounds(count: int, steps: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """CPU milliseconds of each step of each round, after one round that is not measured."""
    spent: dict[str, list[float]] = {name: [] for name in steps}
    with torch.no_grad():
        for number in range(count + 1):
            for name, step in steps.items():
                start = time.process_time()
                step()
                if number:
                    spent[name].append(1e3 * (time.process_time() - start))
    return spent


def _random(faces: Mapping[str, Face], rank: int, endings: str | tuple[str, ...]) -> dict[str, Tensor]:
    tensors = {}
    for name, face in faces.items():
        if name.endswith(endings):
            out, *columns = weight_shape(face)
            tensors[f"{name}.lora_A.weight"] = torch.randn(rank, *columns) / 100
            tensors[f"{name}.lora_B.weight"] = torch.randn(out, rank, *(1,) * (len(columns) - 1)) / 100
    return tensors


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sd15", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--all", action="store_true", help="all layers instead of those of attention")
    parser.add_argument("--large", action="store_true", help="the model's largest latents instead of its smallest")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "unet-cpu", help="models")
    return parser.parse_args()


if __name__ == "__main__":
    main()
