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

from bitbrush.artifact.denoiser import WEIGHTS, denoiser_of, quantized_layers
from bitbrush.artifact.manifest import artifact_folder, reading_tensors
from bitbrush.artifact.store import artifact_digest, verify
from bitbrush.methods import METHODS
from bitbrush.methods.recipe import KEYS, Recipe
from bitbrush.network import generic
from bitbrush.network.layers import set_weight
from bitbrush.quantization.quantize import Quantization, finish, prepare
from bitbrush.quantization.work import require_same_work
from bitbrush.rounding.nearest import RoundedLayer
from bitbrush.session.offload import CPU
from bitbrush.session.progress import Progress, silent
from bitbrush.session.ranks import ranks
from bitbrush.sources.networks import load_pipeline

RECALIBRATED = tuple(name for name, declared in KEYS.items() if declared.recalibrates)
"""Recipe keys that an artifact's rounded weights leave free."""


def recalibrate(
    directory: str | os.PathLike[str],
    keys: Mapping[str, Any],
    prompts: Sequence[str],
    *,
    inputs: Mapping[str, Sequence[Any]] | None = None,
    device: torch.device = CPU,
    progress: Progress = silent,
) -> Quantization:
    """The artifact's weights with activation ranges for its recipe updated by ``keys``.

    ``prompts`` and ``inputs`` as for :func:`bitbrush.quantize`; ``device``: where to compute. Methods that observe full
    precision (rtn, one-shot) observe the quantized weights here. Several
    processes share it as they share quantizing. Raises ArtifactError if the artifact is not intact, ValueError for a
    key that weights depend on.
    """
    root = artifact_folder(directory)
    manifest = verify(root)
    fixed = [key for key in keys if key not in RECALIBRATED]
    if fixed:
        raise ValueError(
            f"{fixed[0]} is not to be changed without rounding anew; recalibrate takes {', '.join(RECALIBRATED)}"
        )
    if keys.get("scheduler") == "own" != manifest["recipe"]["scheduler"]:
        raise ValueError(f"{root} holds {manifest['plan']['scheduler']}, not the base model's own; name a scheduler")
    recipe = Recipe().updated(manifest["recipe"]).updated(keys)
    with reading_tensors(root):
        pipe, rounded = load_rounded(root, manifest)
    pipe.to(device)
    is_generic = manifest["denoiser"]["family"] == generic.NAME
    with ranks() as own, own.together():
        state = prepare(
            pipe, recipe, prompts, inputs=inputs, generic=is_generic, rounded=rounded, progress=progress, ranks=own
        )
        # Other prompts decide nothing about the start token.
        state = replace(state, start_token_ratio=manifest["plan"].get("start_token_ratio"))
        require_same_work(state)
        stages = METHODS[recipe.method].stages
        made = finish(tuple(stage for stage in stages if not stage.changes_network), state)
    return replace(made, recalibrated={"manifest": manifest, "digest": artifact_digest(root)})


def load_rounded(root: Path, manifest: Mapping[str, Any]) -> tuple[DiffusionPipeline, dict[str, RoundedLayer]]:
    """A float32 pipeline whose denoiser has the artifact's weights, inputs not quantized; and the integers."""
    component = manifest["denoiser"]["component"]
    tensors = load_file(root / component / WEIGHTS)
    denoiser, packed = denoiser_of(root / component)
    layers = quantized_layers(denoiser, packed["weight_bits"], tensors)
    rounded = {layer.name: RoundedLayer(layer.weight, layer.bias, layer.first) for layer in layers}
    expected = denoiser.state_dict().keys()
    others = {key: tensors[key] for key in expected if key.rpartition(".")[0] not in rounded}
    denoiser.load_state_dict(others, strict=False)
    for name, layer in rounded.items():
        set_weight(denoiser.get_submodule(name), layer.weight.dequantize(), layer.bias)
    pipe = load_pipeline(root, components={component: denoiser.eval()})
    pipe.set_progress_bar_config(disable=True)
    return pipe, rounded
