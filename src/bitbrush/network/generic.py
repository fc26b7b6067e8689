"""Any other denoiser: its Conv2d and Linear layers, and nothing known of how they hang together."""

import inspect

from diffusers import DiffusionPipeline
from torch import nn

from bitbrush.network.family import Family

NAME = "generic"


def generic_family(pipe: DiffusionPipeline) -> Family:
    """A family of the pipeline's one network that is called with a timestep; no layer is an edge, none is in a block.

    So learned rounding compensates each layer for itself, and first and last layer get the bits of all others: exclude
    them by pattern if that costs too much. Raises ValueError if there is no such network, or more than one.
    """
    found = {
        name: part
        for name, part in pipe.components.items()
        if isinstance(part, nn.Module) and "timestep" in inspect.signature(part.forward).parameters
    }
    if len(found) != 1:
        held = ", ".join(f"{name}: {type(part).__name__}" for name, part in found.items()) or "none"
        raise ValueError(
            f"{type(pipe).__name__} has {len(found)} networks that are called with a timestep ({held}); generic "
            "quantization needs exactly one"
        )
    ((component, denoiser),) = found.items()
    return Family(NAME, component, type(denoiser), high_precision_layers=_none, block_classes=())


def _none(_: nn.Module) -> tuple[str, ...]:
    return ()
