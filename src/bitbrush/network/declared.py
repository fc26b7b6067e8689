"""Structure of a denoiser as diffusers declares it: its blocks, and the layers that read or compute latents."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn

from bitbrush.network.lazy_weights import weight_shape
from bitbrush.network.low_rank import branch_layers

DECLARATIONS = ("_repeated_blocks", "_no_split_modules")
"""Attributes of a diffusers model that name its block classes: for ``compile_repeated_blocks`` and ``device_map``."""


def declared_blocks(denoiser: nn.Module) -> tuple[str, ...]:
    """Returns the names of the denoiser's blocks, in module order; none if its class declares none.

    Declarations also name embedders and final layers. Blocks are members of a list of modules, at any depth.
    """
    classes = {name for attribute in DECLARATIONS for name in getattr(denoiser, attribute, None) or ()}
    lists = tuple(f"{name}." for name, module in denoiser.named_modules() if isinstance(module, nn.ModuleList))
    return blocks_of_classes(denoiser, classes, lists)


def blocks_of_classes(
    denoiser: nn.Module, classes: Collection[str], within: str | tuple[str, ...] = ""
) -> tuple[str, ...]:
    """Returns the names of modules whose class, or one of its bases, has one of these names.

    Args:
        denoiser: Network with the modules.
        classes: Names of classes.
        within: Prefix of the modules' names, or several.
    """
    return tuple(
        name
        for name, module in denoiser.named_modules()
        if name.startswith(within) and any(base.__name__ in classes for base in type(module).__mro__)
    )


def layers_next_to_latents(denoiser: nn.Module) -> tuple[str, ...]:
    """Returns the Conv2d and Linear outside of all blocks that read a patch of the latents or compute one.

    The configuration of the network says how many numbers a patch has: channels, times the positions of a patch.
    Pipelines may pass latents with the patch's positions as channels, so the channels alone are tried first.
    """
    config: Mapping[str, Any] = getattr(denoiser, "config", {})
    blocks, factors = tuple(f"{name}." for name in declared_blocks(denoiser)), branch_layers(denoiser)
    shapes = {
        name: weight_shape(layer)
        for name, layer in denoiser.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and not name.startswith(blocks) and name not in factors
    }
    inputs = {name: math.prod(shape[1:]) for name, shape in shapes.items()}
    outputs = {name: shape[0] for name, shape in shapes.items()}
    read = config.get("in_channels")
    found = {*_of_patch(inputs, read, config), *_of_patch(outputs, config.get("out_channels") or read, config)}
    return tuple(name for name in shapes if name in found)


def _of_patch(sizes: Mapping[str, int], channels: int | None, config: Mapping[str, Any]) -> list[str]:
    """Returns the layers whose size is that of a patch, for the least number of positions that any layer has."""
    found = ([name for name, size in sizes.items() if size == (channels or 0) * count] for count in _positions(config))
    return next(filter(None, found), [])


def _positions(config: Mapping[str, Any]) -> list[int]:
    """Returns the numbers of latent positions that one token may stand for, the least first."""
    areas = config.get("all_patch_size") or (config.get("patch_size") or 1,)
    times = config.get("all_f_patch_size") or (config.get("patch_size_t") or 1,)
    return sorted({1} | {_positions_of(area) * time for area in areas for time in times})


def _positions_of(patch: int | Sequence[int]) -> int:
    return patch * patch if isinstance(patch, int) else math.prod(patch)
