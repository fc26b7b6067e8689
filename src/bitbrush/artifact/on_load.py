"""Quantization of a denoiser that diffusers has just loaded, by a method that needs no prompts."""

from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from bitbrush.artifact.quantization_config import BitbrushConfig
from bitbrush.artifact.stored import StoredDenoiser, attach, packing
from bitbrush.artifact.writing import packed_tensors, stored_config, versions
from bitbrush.methods import METHODS
from bitbrush.methods.method import run_stages
from bitbrush.methods.recipe import FirstTokens, Rounding
from bitbrush.methods.state import QuantizationState
from bitbrush.network.families import family_of_network, known_classes
from bitbrush.network.family import Family
from bitbrush.network.layers import QuantizedLayer
from bitbrush.network.narrow import float32_bytes
from bitbrush.runtime.choose import Choice, runtime_named
from bitbrush.runtime.lowered import lower
from bitbrush.session.session import Session


def require_quantizable(denoiser: nn.Module, config: BitbrushConfig) -> None:
    """Checks class and configuration before the weights are read.

    Raises:
        ValueError: The network is no known denoiser, a key is invalid, or the method needs prompts.
    """
    _state(denoiser, config)
    execution(config, None)


def quantize_loaded(denoiser: nn.Module, config: BitbrushConfig, dtype: torch.dtype | None) -> None:
    """Quantizes a denoiser in place and lowers it.

    The packed integers stay in memory beside those of the runtime, so that the denoiser can be saved.

    Args:
        denoiser: Denoiser with float32 weights.
        config: Bits, method and runtime.
        dtype: Type that was asked for.

    Raises:
        ValueError: As in :func:`require_quantizable`, or a weight is NaN or infinite.
    """
    state = _state(denoiser, config)
    full_precision = float32_bytes(denoiser)
    state = run_stages(METHODS[state.recipe.method].planned(state), state)
    assert state.rounded is not None
    rounded, activations = state.rounded, state.activations
    layers = {name: QuantizedLayer(name, one.weight, one.bias, activations[name]) for name, one in rounded.items()}
    tensors = packed_tensors(denoiser, layers)
    manifest = {
        "recipe": state.recipe.to_dict(),
        "denoiser": {
            "component": state.family.component,
            "family": state.family.name,
            "bytes": sum(tensor.nbytes for tensor in tensors.values()),
            "full_precision_bytes": full_precision,
        },
        "layers": [{**asdict(spec), "shape": list(spec.shape)} for spec in state.specs],
        "versions": versions(),
    }
    attach(denoiser, StoredDenoiser(stored_config(denoiser, layers), manifest, packing(tensors)))
    lower(denoiser, execution(config, dtype), layers.values())


def execution(config: BitbrushConfig, dtype: Any) -> Choice:
    """Selects the runtime of a configuration for the type that ``from_pretrained`` was asked for.

    Runtimes compute in float32 or bfloat16 between the products of integers. float16 stands for the faster of these,
    since a denoiser takes and returns any type.
    """
    return runtime_named(config.runtime, None if dtype == torch.float16 else dtype, config.memory)


def _state(denoiser: nn.Module, config: BitbrushConfig) -> QuantizationState:
    family = denoiser_family(denoiser)
    method = METHODS.named(config.method)
    recipe = method.recipe({"rounding": Rounding.NEAREST, **config.recipe_keys})
    pipe = SimpleNamespace(**{family.component: denoiser})
    state = QuantizationState(pipe, family, recipe, (), Session(), original=pipe)
    known = recipe.first_token is FirstTokens.KNOWN  # planning would read weights, which may not be there yet
    needed = ["first_token"] if known else [one.name for one in method.planned(state) if one.needs_pipeline]
    if needed:
        raise ValueError(
            f"method {recipe.method} needs calibration prompts for {needed[0].replace('_', ' ')}, and from_pretrained "
            "has none: give method='dynamic', whose ranges are found at run time (weight_range='min-max' rounds "
            "weights as rtn does), or use bitbrush.quantize(pipe, prompts, ...)"
        )
    return state


def denoiser_family(denoiser: nn.Module) -> Family:
    """Finds the family of a denoiser.

    Raises:
        ValueError: There is none.
    """
    found = family_of_network(denoiser)
    if found is None:
        raise ValueError(
            f"{type(denoiser).__name__} is no denoiser of a known kind ({known_classes()}): name the denoiser alone, "
            "e.g. components_to_quantize='unet', or use bitbrush.quantize(pipe, prompts, generic=True)"
        )
    return found
