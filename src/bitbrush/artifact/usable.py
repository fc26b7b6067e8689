"""Trial of what a pipeline's scheduler and tokenizers do, because they check most of their settings only then."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel, PreTrainedTokenizerBase

from bitbrush.artifact.documents import ArtifactError
from bitbrush.methods.recipe import Recipe
from bitbrush.sources.agreement import require_agreement
from bitbrush.sources.networks import is_finite
from bitbrush.sources.settings import require_settings

TEXTS = ["a red cat", ""]
TOKENS = 77
CLIP = (CLIPTextModel, CLIPTextModelWithProjection)
"""Encoders with an embedding per position."""


def require_usable(pipe: DiffusionPipeline, manifest: Mapping[str, Any]) -> None:
    """Tries the scheduler of a loaded pipeline on zeros and its tokenizers on two texts; the pipeline is not changed.

    Args:
        pipe: Pipeline of an artifact.
        manifest: Manifest of the artifact.

    Raises:
        ArtifactError: A timestep or sample is not finite, or a token has no embedding.
        ValueError: A setting is null, or does not agree with others. Other errors are the components' own.
    """
    require_settings(pipe)
    require_agreement(pipe, manifest.get("pipeline_class", type(pipe).__name__))
    _require_steps(pipe.scheduler, Recipe().updated(manifest["recipe"]).steps)
    for name, part in pipe.components.items():
        if isinstance(part, PreTrainedTokenizerBase):
            _require_tokens(name, part, getattr(pipe, name.replace("tokenizer", "text_encoder"), None))


def _require_steps(scheduler: Any, steps: int) -> None:
    trial = copy.deepcopy(scheduler)
    shifting = {"mu": 1.0} if trial.config.get("use_dynamic_shifting") else {}
    trial.set_timesteps(steps, **shifting)
    sample = torch.zeros(1, 4, 1, 1)
    for timestep in trial.timesteps[:2]:
        if hasattr(trial, "scale_model_input"):
            sample = trial.scale_model_input(sample, timestep)
        sample = trial.step(sample, timestep, sample).prev_sample
    if not (is_finite(sample) and is_finite(trial.timesteps)):
        raise ArtifactError(f"the {type(scheduler).__name__}'s configuration gives NaN or infinity; quantize again")


def _require_tokens(name: str, tokenizer: PreTrainedTokenizerBase, encoder: Any) -> None:
    longest = min(tokenizer.model_max_length, TOKENS)
    tokens = tokenizer(TEXTS, padding="max_length", max_length=longest, truncation=True, return_tensors="pt").input_ids
    tokenizer(TEXTS, padding="longest")
    if not isinstance(encoder, PreTrainedModel):
        return
    positions = encoder.config.max_position_embeddings if isinstance(encoder, CLIP) else tokenizer.model_max_length
    if tokenizer.model_max_length > positions:
        raise ArtifactError(
            f"{name} has model_max_length {tokenizer.model_max_length}, and its text encoder {positions} positions; "
            "quantize again"
        )
    largest = max([int(tokens.max()), *tokenizer.all_special_ids, *tokenizer.get_vocab().values()])
    embeddings = encoder.get_input_embeddings().num_embeddings
    if largest >= embeddings:
        raise ArtifactError(f"{name} has token {largest}, and its text encoder {embeddings} embeddings; quantize again")
