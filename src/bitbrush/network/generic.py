"""Support for any other denoiser, as far as its class declares its structure."""

from diffusers import DiffusionPipeline
from torch import nn

from bitbrush.network.family import Family
from bitbrush.timeline.tracker import takes_time

NAME = "generic"


def generic_family(pipe: DiffusionPipeline) -> Family:
    """Creates a family for the pipeline's only network that is called with a timestep.

    Blocks and layers next to the latents are those that diffusers declares. Where it declares no blocks, learned
    rounding compensates each layer by itself.

    Raises:
        ValueError: There is no such network, or more than one.
    """
    networks = {
        name: part for name, part in pipe.components.items() if isinstance(part, nn.Module) and takes_time(part)
    }
    if len(networks) != 1:
        held = ", ".join(f"{name}: {type(part).__name__}" for name, part in networks.items()) or "none"
        raise ValueError(
            f"{type(pipe).__name__} has {len(networks)} networks that are called with a timestep ({held}); generic "
            "quantization needs exactly one"
        )
    ((component, denoiser),) = networks.items()
    return Family(NAME, type(denoiser).__name__, component)
