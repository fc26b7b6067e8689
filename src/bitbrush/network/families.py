"""Architectures that can be quantized, and detection of a pipeline's architecture."""

from diffusers import DiffusionPipeline
from diffusers.models.autoencoders.vae import Decoder
from torch import nn

from bitbrush.network import generic
from bitbrush.network.family import Family
from bitbrush.network.flux import FLUX
from bitbrush.network.fusions import Fusion
from bitbrush.network.pixart import PIXART
from bitbrush.network.sd3 import SD3
from bitbrush.network.unet import UNET
from bitbrush.network.unet_fusions import unet_fusions

FAMILIES: tuple[Family, ...] = (UNET, PIXART, SD3, FLUX)
DENOISERS: tuple[str, ...] = tuple(dict.fromkeys(family.component for family in FAMILIES))
"""Names of the denoiser in pipelines."""
FAMILY_NAMES: tuple[str, ...] = (*(family.name for family in FAMILIES), generic.NAME)


class UnknownDenoiserError(ValueError):
    """The pipeline's denoiser is of no known family."""


def family_of(pipe: DiffusionPipeline) -> Family:
    """Finds the family of the pipeline's denoiser.

    Raises:
        UnknownDenoiserError: The denoiser is of no known family; the message lists the pipeline's components.
    """
    family = _known_family(pipe)
    if family is None:
        held = {name: type(part).__name__ for name, part in pipe.components.items()}
        classes = ", ".join(family.denoiser_class.__name__ for family in FAMILIES)
        raise UnknownDenoiserError(
            f"{type(pipe).__name__} has no denoiser of a known kind ({classes}); it holds {held}. With --generic "
            "(generic=True) its Linear and Conv2d layers are quantized without regard to its architecture"
        )
    return family


def denoiser_name(pipe: DiffusionPipeline) -> str:
    """Returns the pipeline's name for its denoiser, whether or not its family is known.

    Raises:
        ValueError: The denoiser cannot be identified.
    """
    family = _known_family(pipe) or generic.generic_family(pipe)
    return family.component


def _known_family(pipe: DiffusionPipeline) -> Family | None:
    held = (family for family in FAMILIES if isinstance(getattr(pipe, family.component, None), family.denoiser_class))
    return next(held, None)


def known_fusions(denoiser: nn.Module) -> tuple[Fusion, ...]:
    """Returns the fused ops of a denoiser or of a VAE's decoder; none if its family is unknown."""
    if isinstance(denoiser, Decoder):
        return unet_fusions(denoiser)
    return next((family.fusions(denoiser) for family in FAMILIES if isinstance(denoiser, family.denoiser_class)), ())
