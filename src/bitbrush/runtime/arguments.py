"""A denoiser's arguments by name, and the types that it is called with, computes in and answers with."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

EXACT_ARGUMENTS = ("timestep", "time_ids", "img_ids", "txt_ids", "resolution", "aspect_ratio")
"""Numbers that a denoiser embeds: times, sizes and places, which bfloat16 would round to a neighbour."""


def by_name(names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call under the ``names`` of the parameters, the positional ones first."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def floating_tensors(values: Any) -> list[Tensor]:
    """All tensors of numbers in ``values``, however nested."""
    return [x for x in pytree.tree_leaves(values) if isinstance(x, Tensor) and x.is_floating_point()]


def sample_of(names: Sequence[str], arguments: Mapping[str, Any]) -> Tensor:
    """The noisy latents, a denoiser's first parameter, or the first of a list of them: the answer has their type."""
    return floating_tensors(arguments[names[0]])[0]


def cast(arguments: Mapping[str, Any], dtype: torch.dtype, device: torch.device | None = None) -> Any:
    """The arguments in ``dtype`` but for EXACT_ARGUMENTS, on ``device`` where one is given."""
    return pytree.tree_map_with_path(partial(_cast, dtype, device), dict(arguments))


def _cast(dtype: torch.dtype, device: torch.device | None, path: tuple[Any, ...], value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    exact = not value.is_floating_point() or any(getattr(key, "key", None) in EXACT_ARGUMENTS for key in path)
    return value.to(device or value.device, value.dtype if exact else dtype)


def answer_like(sample: Tensor, output: Any) -> Any:
    """A denoiser's output, its numbers in the type and on the device of ``sample``."""
    return pytree.tree_map_only(Tensor, lambda x: x.to(sample.device, sample.dtype), output)
