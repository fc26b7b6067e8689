"""Activation ranges for another plan, recalibrated for the integer weights of an artifact.

Progressive calibration observes the network with quantized weights. It therefore needs neither the full-precision
model nor rounding, which takes most of the time.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from bitbrush.artifact.building import building
from bitbrush.artifact.denoiser import read_denoiser
from bitbrush.artifact.manifest import reading_tensors
from bitbrush.artifact.verification import artifact_digest, reading
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
"""Recipe keys that do not affect an artifact's rounded weights."""


def recalibrate(
    directory: str | os.PathLike[str],
    keys: Mapping[str, Any],
    prompts: Iterable[str],
    *,
    inputs: Mapping[str, Sequence[Any]] | None = None,
    device: torch.device = CPU,
    progress: Progress = silent,
) -> Quantization:
    """Recalibrates activation ranges for an artifact's weights and its recipe updated by ``keys``.

    Methods that observe full precision (rtn, one-shot) observe the quantized weights here. Several processes share the
    work as in :func:`bitbrush.quantize`.

    Args:
        directory: Folder or hub id of the artifact.
        keys: Recipe keys that leave the weights unchanged.
        prompts: Calibration prompts.
        inputs: Further pipeline arguments, one value per prompt.
        device: Device that computes.
        progress: Callback that receives progress reports.

    Returns:
        The quantized pipeline with the artifact's weights and new activation ranges.

    Raises:
        ArtifactError: The artifact is not intact.
        ValueError: The weights depend on a key, or the artifact has other quantized networks.
    """
    with reading(directory) as (root, manifest):
        if networks := manifest.get("networks"):
            raise ValueError(
                f"{root} has quantized networks beside its denoiser ({', '.join(networks)}), and only artifacts of the "
                "denoiser alone are recalibrated; quantize again with the other keys"
            )
        recipe = _recipe(root, manifest, keys)
        pipe, rounded = load_rounded(root, manifest)
        digest = artifact_digest(root)
    pipe.to(device)
    is_generic = manifest["denoiser"]["family"] == generic.NAME
    with ranks() as own, own.together():
        state = prepare(
            pipe, recipe, prompts, inputs=inputs, generic=is_generic, rounded=rounded, progress=progress, ranks=own
        )
        # The prompts of a recalibration must not change the treatment of the start token.
        state = replace(state, start_token_ratio=manifest["plan"].get("start_token_ratio"))
        require_same_work(state)
        stages = METHODS[recipe.method].stages
        made = finish(tuple(stage for stage in stages if not stage.changes_network), state)
    return replace(made, recalibrated={"manifest": manifest, "digest": digest})


def _recipe(root: Path, manifest: Mapping[str, Any], keys: Mapping[str, Any]) -> Recipe:
    fixed = [key for key in keys if key not in RECALIBRATED]
    if fixed:
        raise ValueError(
            f"{fixed[0]} is not to be changed without rounding anew; recalibrate takes {', '.join(RECALIBRATED)}"
        )
    if keys.get("scheduler") == "own" != manifest["recipe"].get("scheduler"):
        raise ValueError(f"{root} holds {manifest['plan']['scheduler']}, not the base model's own; name a scheduler")
    return Recipe().updated(manifest["recipe"]).updated(keys)


def load_rounded(root: Path, manifest: Mapping[str, Any]) -> tuple[DiffusionPipeline, dict[str, RoundedLayer]]:
    """Loads a float32 pipeline with the artifact's dequantized weights, without input quantization.

    Args:
        root: Folder of the artifact.
        manifest: Manifest of the artifact.

    Returns:
        The pipeline, and the rounded layers by name.
    """
    component = manifest["denoiser"]["component"]
    with reading_tensors(root):
        denoiser, layers = read_denoiser(root / component)
        rounded = {layer.name: RoundedLayer(layer.weight, layer.bias, layer.first) for layer in layers}
    for name, layer in rounded.items():
        set_weight(denoiser.get_submodule(name), layer.weight.dequantize(), layer.bias)
    with building(root):
        pipe = load_pipeline(root, components={component: denoiser.eval()})
    pipe.set_progress_bar_config(disable=True)
    return pipe, rounded
