"""Time, denoiser calls and peak memory of quantizing Stable Diffusion 1.5's and SDXL's denoisers in full size.

    python benchmarks/quantize_scale.py                       # all runs; hours on two cores
    python benchmarks/quantize_scale.py --models sd15 --runs "rtn" --latents 32

The configurations are the published ones, the weights random and stored in float16. Text encoders and VAE are tiny, of
the widths that the denoiser wants: the real ones would add 0.8 GB (1.5) and 3.6 GB (SDXL) in float32. Every run is
``bitbrush quantize`` in a process of its own; its peak is the kernel's VmHWM. Finished runs are kept in the results
file: the same command goes on where it ended, and prints the table of all.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cpu.models import MODELS, Model, source
from cpu.results import Results, Row
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from bitbrush.zoo import model_path

PROMPTS = ("a red fox in the snow", "two boats on a lake", "a wooden chair", "an old lighthouse at night")
POLL = 0.2
"""Seconds between two looks at a process's peak, which only grows."""
LATENT_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@dataclass(frozen=True)
class Run:
    """Options of ``bitbrush quantize``; ``prompts``, each a batch of its own, and ``steps`` are few."""

    name: str
    options: tuple[str, ...]
    steps: int = 2
    prompts: int = 1


def excluded(*patterns: str) -> tuple[str, ...]:
    return tuple(word for pattern in patterns for word in ("--exclude", pattern))


FIRST_UP = ("down_blocks.*", "up_blocks.0.resnets.[12].*", "up_blocks.0.[!r]*", "*.transformer_blocks.[1-9].*")
LEARNED_PARTS = {
    "sd15": excluded(*FIRST_UP, "up_blocks.[123].*"),
    "sdxl": excluded(*FIRST_UP, "up_blocks.[12].*"),
}
"""What is left out of learned rounding of a part: all but the middle and a block of 23,040 inputs, of the widest."""


def runs(model: Model) -> tuple[Run, ...]:
    return (
        Run("rtn", ("--method", "rtn")),
        Run("pcr, nearest rounding", ("--method", "pcr", "--rounding", "nearest")),
        Run("pcr, nearest rounding, 4 steps", ("--method", "pcr", "--rounding", "nearest"), steps=4),
        Run("pcr, nearest rounding, 2 batches", ("--method", "pcr", "--rounding", "nearest"), prompts=2),
        Run("pcr, learned rounding", ("--method", "pcr"), prompts=2),
        Run("pcr, learned rounding of a part", ("--method", "pcr", *LEARNED_PARTS[model.name]), prompts=2),
    )


def main() -> None:
    options = _options()
    results = Results(options.results)
    for name in options.models:
        model = MODELS[name]
        folder = pipeline_folder(model, options.scratch)
        for size in options.latents:
            for run in runs(model):
                key = f"{name}@{size}"
                if (options.runs and run.name not in options.runs) or results.has(key, run.name):
                    continue
                row = measure(folder, run, size, options.scratch)
                results.put(key, {run.name: row})
                print(f"{key} {run.name}: {row['peak_mib']:.0f} MiB, {row['seconds']:.0f} s", flush=True)
    print(table(results))


def pipeline_folder(model: Model, scratch: Path) -> Path:
    """The whole pipeline, its denoiser in float16; made on first use."""
    folder = scratch / model.name / "pipeline"
    if not (folder / "model_index.json").exists():
        fresh = folder.with_suffix(".part")
        shutil.rmtree(fresh, ignore_errors=True)
        _without_denoiser(model).save_pretrained(fresh)
        index = json.loads((fresh / "model_index.json").read_text(encoding="utf-8"))
        index["unet"] = ["diffusers", "UNet2DConditionModel"]
        (fresh / "model_index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
        (fresh / "unet").symlink_to(source(model, torch.float16, scratch))
        fresh.rename(folder)
    return folder


def _without_denoiser(model: Model) -> Any:
    tokenizer_path = model_path("emoji-sd")
    assert tokenizer_path is not None
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_path / "tokenizer")
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        norm_num_groups=4,
        latent_channels=4,
    )
    if model.pooled_width is None:
        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=CLIPTextModel(_text_config(tokenizer, model.text_width)),
            tokenizer=tokenizer,
            unet=None,
            scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **LATENT_DIFFUSION),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(_text_config(tokenizer, model.text_width - model.pooled_width)),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer, model.pooled_width)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=None,
        scheduler=EulerDiscreteScheduler(timestep_spacing="leading", **LATENT_DIFFUSION),
        add_watermarker=False,
    )


def _text_config(tokenizer: CLIPTokenizer, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=width // 64,
        projection_dim=width,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def measure(folder: Path, run: Run, size: int, scratch: Path) -> Row:
    """What the kernel and the artifact's manifest tell of the run."""
    prompts, output = scratch / "prompts.txt", scratch / "artifact"
    prompts.write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "bitbrush", "quantize", str(folder), "-o", str(output)]
    command += ["--prompts", str(prompts), "--num-prompts", str(run.prompts), "--batch-size", "1"]
    command += ["--steps", str(run.steps), *run.options]
    command += [word for side in ("height", "width") for word in ("--pipeline-argument", f"{side}={8 * size}")]
    began = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    peak = 0
    while process.poll() is None:
        peak = max(peak, _peak_kib(process.pid))
        time.sleep(POLL)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    seconds = time.perf_counter() - began
    manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    shutil.rmtree(output)
    layers = [layer for layer in manifest["layers"] if layer["excluded"] is None]
    return {
        "options": [*run.options, "--steps", str(run.steps), "--num-prompts", str(run.prompts), "--batch-size", "1"],
        "seconds": round(seconds, 1),
        "peak_mib": round(peak / 1024, 1),
        "batches": run.prompts,
        "steps": run.steps,
        "calls_per_batch": {phase: cost["denoiser_calls_per_batch"] for phase, cost in manifest["cost"].items()},
        "layers": len(layers),
        "weights": sum(math.prod(layer["shape"]) for layer in layers),
        "artifact_mib": round(manifest["denoiser"]["bytes"] / 2**20, 1),
    }


def _peak_kib(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), 0)


def table(results: Results) -> str:
    lines = [
        "| denoiser, latents | run | steps, batches | layers (M weights) | calls a batch | peak MiB | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, rows in results.runs.items():
        for name, row in rows.items():
            calls = ", ".join(f"{phase.replace('_', ' ')} {n}" for phase, n in row["calls_per_batch"].items() if n)
            lines.append(
                f"| {key} | {name} | {row['steps']}, {row['batches']} | {row['layers']} ({row['weights'] / 1e6:.0f}) | "
                f"{calls} | {row['peak_mib']:.0f} | {row['seconds']:.0f} |"
            )
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda text: text.split(","), default=["sd15", "sdxl"])
    parser.add_argument("--latents", type=lambda text: [int(size) for size in text.split(",")], default=[32, 64])
    parser.add_argument("--runs", action="append", help="a run by its name; repeatable [all]")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "bitbrush-scale")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "quantize-scale.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
