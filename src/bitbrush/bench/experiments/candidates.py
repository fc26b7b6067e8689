"""Candidates of a measurement: artifacts, models, other packages' quantization, and functions."""

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from bitbrush.artifact.manifest import is_artifact, read_manifest
from bitbrush.artifact.origin import require_origin
from bitbrush.artifact.sizes import MIB, checkpoint_bytes, denoiser_sizes, network_sizes
from bitbrush.artifact.store import load_with
from bitbrush.artifact.verification import artifact_digest
from bitbrush.bench.experiments.foreign import (
    function_pipeline,
    named_function,
    names_function,
    peer_pipeline,
    quantized_by,
    saved_pipeline,
)
from bitbrush.bench.experiments.storage import memory_bytes
from bitbrush.bench.experiments.subject import Subject
from bitbrush.bench.peers.registry import installed_peer, names_peer
from bitbrush.methods.recipe import Recipe
from bitbrush.network.families import denoiser_name
from bitbrush.network.layers import HIGH_PRECISION_ACTIVATION_BITS
from bitbrush.network.narrow import float32_bytes
from bitbrush.runtime.choose import Choice
from bitbrush.runtime.interface import layers_by_fallback
from bitbrush.runtime.lowered import lowered_of
from bitbrush.sources.identity import model_digest
from bitbrush.sources.models import ModelOptions, find_model, load_full_precision
from bitbrush.timeline.plan import SamplingPlan

FLOAT = "torch: float32"
NOTED_BITS = 0.05
"""Difference of averages from which the bits over all products are noted."""


def open_reference(source: str, options: ModelOptions | None = None) -> tuple[Subject, DiffusionPipeline]:
    """Loads a full-precision model with ``options``.

    Raises:
        ValueError: There is no such model, or it is an artifact.
    """
    if is_artifact(source):
        raise ValueError(
            f"the reference {source!r} is a quantized artifact; name the full-precision model it was made of"
        )
    return _model("full precision", source, options or ModelOptions())


def open_candidate(
    name: str,
    source: str,
    reference: Subject,
    plan: SamplingPlan,
    choice: Choice,
    options: ModelOptions | None = None,
) -> tuple[Subject, DiffusionPipeline]:
    """Loads a candidate.

    Args:
        name: Name in tables.
        source: Folder of an artifact, a model, ``PEER:SCHEME`` or ``MODULE:FUNCTION``.
        reference: Full-precision model that an artifact must be made of.
        plan: Sampling plan of the measurement; differences from the calibration become notes.
        choice: Runtime of an artifact.
        options: Options with which the reference was loaded.

    Returns:
        Description and pipeline.

    Raises:
        ValueError: The artifact is made of another model, or cannot be loaded.
    """
    if is_artifact(source):
        return _artifact(name, source, reference, plan, choice, options=options)
    if names_peer(source):
        pipe = choice.place(load_full_precision(reference.source, options))
        return peer_pipeline(name, source, pipe, reference)
    if names_function(source):
        return function_pipeline(name, source, reference)
    if quantized_by(source):
        return saved_pipeline(name, source, reference)
    return _model(name, source, ModelOptions())


def _artifact(
    name: str,
    source: str,
    reference: Subject,
    plan: SamplingPlan,
    choice: Choice,
    *,
    options: ModelOptions | None,
) -> tuple[Subject, DiffusionPipeline]:
    manifest = read_manifest(source)
    doubt = require_origin(source, manifest, reference.source, options or ModelOptions(), reference.digest)
    pipe = load_with(source, choice)
    denoiser = getattr(pipe, denoiser_name(pipe))
    lowered = lowered_of(denoiser)
    assert lowered is not None
    recipe, sizes = Recipe().updated(manifest["recipe"]), denoiser_sizes(manifest)
    subject = Subject(
        name=name,
        source=source,
        digest=artifact_digest(source),
        denoiser_mib=sizes.packed / MIB,
        memory_mib=memory_bytes(denoiser) / MIB,
        float32_mib=sizes.float32 / MIB,
        weight_bits=recipe.weights,
        activation_bits=manifest["plan"]["average_activation_bits"],
        operators=_quantized_operators(manifest, recipe),
        runtime=lowered.name,
        int8_layers=sum(execution.fallback is None for execution in lowered.executions),
        fallbacks=layers_by_fallback(lowered.executions),
        notes=(*_notes(recipe, plan), *_product_bits(manifest), *_networks(manifest), *([doubt] if doubt else [])),
    )
    return subject, pipe


def _product_bits(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yields a note if activations have more bits on average than the listed layers' once all products count."""
    listed = manifest["plan"]["average_activation_bits"]
    bits = manifest["plan"].get("product_bits")
    if bits is not None and bits["activations"] - listed > NOTED_BITS:
        yield (
            f"with branches and layers next to the latents, {bits['activations']:.2f} activation bits and "
            f"{bits['weights']:.2f} weight bits on average over all products"
        )


def _networks(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns a note for each network that is quantized beside the denoiser, with its sizes."""
    return tuple(f"{name} is quantized, too: {sizes.text}" for name, sizes in network_sizes(manifest).items())


def require_candidate(name: str, source: str) -> None:
    """Checks that a candidate exists, before anything is generated; what is damaged or does not fit is found later.

    Raises:
        ValueError: It is neither an artifact, nor a model, nor an installed peer's scheme, nor a function.
    """
    if is_artifact(source):
        return
    if names_peer(source):
        installed_peer(*source.split(":", 1))
    elif names_function(source):
        named_function(source)
    else:
        try:
            find_model(source)
        except ValueError as error:
            raise ValueError(f"candidate {name!r} is no artifact, and no model to compare: {error}") from error


def require_alike(full: DiffusionPipeline, candidate: DiffusionPipeline) -> None:
    """Checks that latents have one shape, since a pair needs the same noise.

    Raises:
        ValueError: The shapes differ.
    """
    shapes = []
    for pipe in (full, candidate):
        config = getattr(pipe, denoiser_name(pipe)).config
        shapes.append((type(pipe).__name__, config.in_channels, config.get("sample_size")))  # FLUX has none
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the model is {shapes[0]} and the candidate {shapes[1]} (pipeline, latent channels, latent size); "
            "compare an artifact with the model it was made of, any other with one of its class and latents"
        )


def named_candidates(arguments: Sequence[str]) -> dict[str, str]:
    """Names the candidates of a command line.

    Args:
        arguments: ``NAME=DIR``, or ``DIR``, which is named after its last part. A second candidate of the same name
            gets a number.

    Returns:
        Sources by name.
    """
    sources: dict[str, str] = {}
    for argument in arguments:
        is_source = "=" not in argument or Path(argument).exists()  # a folder's name may contain the sign
        name, _, source = ("", "", argument) if is_source else argument.partition("=")
        plain = name or Path(source).name or source
        namesakes = sum(other == plain or other.startswith(f"{plain} (") for other in sources)
        sources[f"{plain} ({namesakes + 1})" if namesakes else plain] = source
    return sources


def with_scheduler_of(pipe: DiffusionPipeline, reference: DiffusionPipeline) -> DiffusionPipeline:
    """Returns the pipeline with the reference's scheduler: the same timesteps and noise for both of a pair."""
    other = copy.copy(pipe)
    other.scheduler = copy.deepcopy(reference.scheduler)
    return other


def _model(name: str, source: str, options: ModelOptions) -> tuple[Subject, DiffusionPipeline]:
    pipe = load_full_precision(source, options)
    component = denoiser_name(pipe)
    denoiser = getattr(pipe, component)
    layers = Counter(type(m).__name__ for m in denoiser.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    operators = {f"{kind}, float32": count for kind, count in sorted(layers.items())}
    notes = tuple(f"with LoRA {lora.path.name}, scale {lora.scale:g}" for lora in options.loras)
    subject = Subject(
        name=name,
        source=source,
        digest=model_digest(pipe),
        denoiser_mib=checkpoint_bytes(source, options, component, denoiser) / MIB,
        memory_mib=memory_bytes(denoiser) / MIB,
        float32_mib=float32_bytes(denoiser) / MIB,
        weight_bits=32,
        activation_bits=32,
        operators=operators,
        runtime=FLOAT,
        notes=notes,
    )
    return subject, pipe


def _quantized_operators(manifest: dict[str, Any], recipe: Recipe) -> dict[str, int]:
    """Counts layers by kind and bits, e.g. ``Conv2d, W4A8``, without the additional bits of relaxed steps."""
    kinds = {"conv": "Conv2d", "linear": "Linear"}
    counts: Counter[str] = Counter()
    for layer in manifest["layers"]:
        a_bits = HIGH_PRECISION_ACTIVATION_BITS if layer["high_precision"] else recipe.activations
        bits = f"W{layer['weight_bits']}A{a_bits}" if layer["excluded"] is None else "float32"
        counts[f"{kinds[layer['kind']]}, {bits}"] += 1
    return dict(sorted(counts.items()))


def _notes(recipe: Recipe, plan: SamplingPlan) -> Iterator[str]:
    if recipe.steps != plan.steps:
        yield f"calibrated for {recipe.steps} steps, measured with {plan.steps}"
    if recipe.guidance_scale != plan.guidance_scale:
        yield f"calibrated for guidance {recipe.guidance_scale:g}, measured with {plan.guidance_scale:g}"
