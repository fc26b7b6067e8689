"""Denoiser arguments by name, and the dtypes of inputs, computation and outputs."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bitbrush.timeline.tracker import TIME_ARGUMENTS

EXACT_ARGUMENTS = (*TIME_ARGUMENTS, "time_ids", "img_ids", "txt_ids", "resolution", "aspect_ratio")
"""Arguments that a denoiser embeds: times, sizes and positions, which bfloat16 would round to a neighbour."""


def by_name(names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Maps the arguments of a call to parameter ``names``, positional arguments first."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def floating_tensors(values: Any) -> list[Tensor]:
    """Collects all floating-point tensors in ``values``, however nested."""
    return [x for x in pytree.tree_leaves(values) if isinstance(x, Tensor) and x.is_floating_point()]


def sample_of(names: Sequence[str], arguments: Mapping[str, Any]) -> Tensor:
    """Returns the tensor whose dtype and device the output gets: the noisy latents, which are the first argument.

    They may be a list of tensors. A text encoder, which takes token numbers, answers in float32.
    """
    first = pytree.tree_leaves(arguments.get(names[0], arguments))
    tensors = [x for x in first if isinstance(x, Tensor)]
    return next((x for x in tensors if x.is_floating_point()), tensors[0][:0].float())


def require_no_gradient(arguments: Mapping[str, Any]) -> None:
    """Rejects a call whose gradient is asked for; rounding has the gradient 0, and integers have none.

    Raises:
        ValueError: An argument requires a gradient while gradients are enabled.
    """
    if not torch.is_grad_enabled():
        return
    names = [name for name, value in arguments.items() if any(x.requires_grad for x in floating_tensors(value))]
    if names:
        raise ValueError(
            f"{', '.join(names)} requires a gradient, which a quantized denoiser does not have: it rounds its inputs. "
            "Call it under torch.no_grad(), or use the full-precision pipeline"
        )


def cast(arguments: Mapping[str, Any], dtype: torch.dtype, device: torch.device | None = None) -> Any:
    """Casts arguments to ``dtype`` except EXACT_ARGUMENTS, and moves them to ``device`` unless it is None."""
    return pytree.tree_map_with_path(partial(_cast, dtype, device), dict(arguments))


def _cast(dtype: torch.dtype, device: torch.device | None, path: tuple[Any, ...], value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    exact = not value.is_floating_point() or any(getattr(key, "key", None) in EXACT_ARGUMENTS for key in path)
    return value.to(device or value.device, value.dtype if exact else dtype)


def answer_like(sample: Tensor, output: Any) -> Any:
    """Casts the floating-point tensors of an output to the dtype and device of ``sample``."""
    return pytree.tree_map_only(Tensor, lambda x: x.to(sample.device, sample.dtype), output)
