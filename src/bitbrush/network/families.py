"""The architectures that can be quantized, and finding a pipeline's."""

from diffusers import DiffusionPipeline
from torch import nn

from bitbrush.network.family import Family
from bitbrush.network.fusions import Fusion
from bitbrush.network.unet import UNET

FAMILIES: tuple[Family, ...] = (UNET,)


class UnknownDenoiserError(ValueError):
    """The pipeline's denoiser is of no known family."""


def family_of(pipe: DiffusionPipeline) -> Family:
    """Raises UnknownDenoiserError, naming what the pipeline holds, if its denoiser is of no known family."""
    for family in FAMILIES:
        if isinstance(getattr(pipe, family.component, None), family.denoiser_class):
            return family
    held = {name: type(part).__name__ for name, part in pipe.components.items()}
    known = ", ".join(family.denoiser_class.__name__ for family in FAMILIES)
    raise UnknownDenoiserError(f"{type(pipe).__name__} has no denoiser of a known kind ({known}); it holds {held}")


def known_fusions(denoiser: nn.Module) -> tuple[Fusion, ...]:
    """What can be computed in one go in a denoiser; nothing in one of no known family."""
    return next((one.fusions(denoiser) for one in FAMILIES if isinstance(denoiser, one.denoiser_class)), ())
