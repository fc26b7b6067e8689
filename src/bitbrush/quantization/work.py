"""Facts that determine the result of a quantization; intermediate results resume only if they agree."""

import hashlib
import importlib.metadata
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bitbrush.methods.recipe import Recipe
from bitbrush.methods.state import QuantizationState
from bitbrush.network.lazy_weights import device_of
from bitbrush.session.digests import json_digest
from bitbrush.timeline.trajectory import PromptBatch

VERSIONS = ("bitbrush", "torch", "diffusers", "transformers")


def work_facts(state: QuantizationState) -> dict[str, Any]:
    """Returns all determining facts except the full-precision weights, as JSON values by name."""
    return {
        **early_facts(state.recipe, state.batches, device_of(state.denoiser)),
        "family": state.family.name,
        "weights": _weights_digest(state),
        "number of processes": state.session.ranks.world,
    }


def early_facts(recipe: Recipe, batches: Sequence[PromptBatch], device: torch.device) -> dict[str, Any]:
    """Returns the determining facts that are known before the model is loaded."""
    return {
        "recipe": recipe.to_dict(),
        "prompts": prompts_digest(batches),
        "device": device.type,
        **machine_facts(),
    }


def machine_facts() -> dict[str, Any]:
    """Returns the properties of the machine that affect the last bits of a result."""
    return {
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
        "number of threads": torch.get_num_threads(),  # the thread count changes the summation order
    }


def require_same_work(state: QuantizationState) -> None:
    """Checks that all processes of a quantization have the same inputs.

    The networks' full-precision weights are not compared.

    Raises:
        ValueError: The inputs differ; raised in every process, and the message names the facts that differ.
    """
    parts = work_facts(state)
    digests = torch.tensor([int(json_digest(part)[:14], 16) for part in parts.values()])
    differ = state.session.ranks.least(digests.clone()) != state.session.ranks.most(digests.clone())
    unlike = [name for name, other in zip(parts, differ.tolist(), strict=True) if other]
    if unlike:
        raise ValueError(
            f"the {state.session.ranks.world} processes were given different {' and '.join(unlike)}; "
            "give all of them the same: they share one quantization"
        )


def prompts_digest(batches: Sequence[PromptBatch]) -> str:
    """Computes SHA-256 over prompts, seeds and inputs of all batches."""
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(repr((batch.prompts, batch.seeds, sorted(batch.inputs))).encode())
        for name in sorted(batch.inputs):
            for value in batch.inputs[name]:
                digest.update(value.tobytes() if hasattr(value, "tobytes") else repr(value).encode())
    return digest.hexdigest()


def _weights_digest(state: QuantizationState) -> str | None:
    """Computes SHA-256 over weights rounded in an earlier quantization; None if this run rounds them."""
    if state.rounded is None:
        return None
    digest = hashlib.sha256()
    for name, layer in sorted(state.rounded.items()):
        digest.update(name.encode())
        for tensor in (layer.weight.w_q, layer.weight.qparams.scale, layer.weight.qparams.zero_point, layer.bias):
            digest.update(_bytes(tensor) if tensor is not None else b"none")
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
