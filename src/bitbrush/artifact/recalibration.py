"""Activation ranges for another plan, found anew on the integers that an artifact already holds.

Progressive calibration observes the network with quantized weights, so it needs nothing that the artifact has not: no
full-precision model, and none of the rounding that takes most of the time.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from bitbrush.artifact.checkpoint_type import in_type
from bitbrush.artifact.denoiser import WEIGHTS, denoiser_of
from bitbrush.artifact.quantization import Quantization, quantization_job, run_method
from bitbrush.artifact.store import artifact_digest, verify
from bitbrush.artifact.tensors import layer_from_tensors
from bitbrush.artifact.work import require_same_job
from bitbrush.methods.recipe import Recipe
from bitbrush.network import generic
from bitbrush.network.layers import set_weight
from bitbrush.rounding.nearest import RoundedLayer
from bitbrush.timeline.progress import Progress, silent
from bitbrush.timeline.ranks import ranks
from bitbrush.timeline.spool import PROCESSOR

KEYS = (
    "activations",
    "relax",
    "activation_range",
    "steps",
    "guidance_scale",
    "scheduler",
    "pipeline_arguments",
    "num_prompts",
    "batch_size",
    "seed",
)
"""Keys of a recipe that decide nothing about the weights."""


def recalibrate(
    directory: str | os.PathLike[str],
    keys: Mapping[str, Any],
    prompts: Sequence[str],
    *,
    inputs: Mapping[str, Sequence[Any]] | None = None,
    device: torch.device = PROCESSOR,
    progress: Progress = silent,
) -> Quantization:
    """The artifact's weights with activation ranges for its recipe updated by ``keys``.

    ``prompts`` and ``inputs`` as for :func:`bitbrush.quantize`; ``device``: where to compute. Methods that observe full
    precision (rtn, one-shot) observe the quantized weights here. Several
    processes share it as they share quantizing. Raises ArtifactError if the artifact is not intact, ValueError for a
    key that weights depend on.
    """
    root = Path(directory)
    manifest = verify(root)
    fixed = [key for key in keys if key not in KEYS]
    if fixed:
        raise ValueError(f"{fixed[0]} is not to be changed without rounding anew; recalibrate takes {', '.join(KEYS)}")
    if keys.get("scheduler") == "own" != manifest["recipe"]["scheduler"]:
        raise ValueError(f"{root} holds {manifest['plan']['scheduler']}, not the base model's own; name a scheduler")
    recipe = Recipe().updated(manifest["recipe"]).updated(keys)
    pipe, rounded = load_rounded(root, manifest)
    pipe.to(device)
    is_generic = manifest["denoiser"]["family"] == generic.NAME
    with ranks() as own, own.together():
        job = quantization_job(
            pipe, recipe, prompts, inputs=inputs, generic=is_generic, rounded=rounded, progress=progress, ranks=own
        )
        require_same_job(job)
        made = run_method(job)
    return replace(made, recalibrated={"manifest": manifest, "digest": artifact_digest(root)})


def load_rounded(root: Path, manifest: Mapping[str, Any]) -> tuple[DiffusionPipeline, dict[str, RoundedLayer]]:
    """A float32 pipeline whose denoiser has the artifact's weights, inputs not quantized; and the integers."""
    component = manifest["denoiser"]["component"]
    tensors = load_file(root / component / WEIGHTS)
    entries = [entry for entry in manifest["layers"] if entry["excluded"] is None]
    layers = [
        layer_from_tensors(entry["name"], tuple(entry["shape"]), entry["weight_bits"], tensors) for entry in entries
    ]
    rounded = {layer.name: RoundedLayer(layer.weight, layer.bias, layer.first) for layer in layers}
    denoiser, _ = denoiser_of(root / component)
    expected = denoiser.state_dict().keys()
    others = {key: tensors[key] for key in expected if key.rpartition(".")[0] not in rounded}
    denoiser.load_state_dict(others, strict=False)
    for name, layer in rounded.items():
        set_weight(denoiser.get_submodule(name), layer.weight.dequantize(), layer.bias)
    pipe = DiffusionPipeline.from_pretrained(root, **in_type(torch.float32), **{component: denoiser.eval()})
    pipe.set_progress_bar_config(disable=True)
    return pipe, rounded
