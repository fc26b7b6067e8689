"""Support for any other denoiser: its Conv2d and Linear layers, without knowledge of its structure."""

import inspect

from diffusers import DiffusionPipeline
from torch import nn

from bitbrush.network.family import Family

NAME = "generic"


def generic_family(pipe: DiffusionPipeline) -> Family:
    """Creates a family for the pipeline's only network that is called with a timestep.

    It has no high-precision layers and no blocks. So learned rounding compensates each layer by itself, and the first
    and last layer get the bits of all others. Exclude them by pattern if that costs too much.

    Raises:
        ValueError: There is no such network, or more than one.
    """
    networks = {
        name: part
        for name, part in pipe.components.items()
        if isinstance(part, nn.Module) and "timestep" in inspect.signature(part.forward).parameters
    }
    if len(networks) != 1:
        held = ", ".join(f"{name}: {type(part).__name__}" for name, part in networks.items()) or "none"
        raise ValueError(
            f"{type(pipe).__name__} has {len(networks)} networks that are called with a timestep ({held}); generic "
            "quantization needs exactly one"
        )
    ((component, denoiser),) = networks.items()
    return Family(NAME, component, type(denoiser), high_precision_layers=_none, block_classes=())


def _none(_: nn.Module) -> tuple[str, ...]:
    return ()
