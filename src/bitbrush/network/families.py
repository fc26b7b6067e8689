"""Architectures that can be quantized, and detection of a pipeline's architecture."""

from diffusers import DiffusionPipeline
from diffusers.models.autoencoders.vae import Decoder
from torch import nn

from bitbrush.network import generic
from bitbrush.network.family import Family
from bitbrush.network.fusions import Fusion
from bitbrush.network.unet import UNET
from bitbrush.network.unet_fusions import unet_fusions

FAMILIES: tuple[Family, ...] = (
    UNET,
    Family("pixart", "PixArtTransformer2DModel"),
    Family("sd3", "SD3Transformer2DModel"),
    Family("flux", "FluxTransformer2DModel"),
    Family("flux2", "Flux2Transformer2DModel"),
    Family("z-image", "ZImageTransformer2DModel"),
    Family("qwen-image", "QwenImageTransformer2DModel"),
    Family("qwen-image-2.1", "QwenImage21Transformer2DModel"),
    Family("krea2", "Krea2Transformer2DModel"),
    Family("sana", "SanaTransformer2DModel"),
    Family("lumina2", "Lumina2Transformer2DModel"),
    Family("ernie-image", "ErnieImageTransformer2DModel"),
    Family("cogview4", "CogView4Transformer2DModel"),
    Family("hidream", "HiDreamImageTransformer2DModel"),
    Family("wan", "WanTransformer3DModel"),
)
DENOISERS: tuple[str, ...] = tuple(dict.fromkeys(family.component for family in FAMILIES))
"""Names of the denoiser in pipelines."""
FAMILY_NAMES: tuple[str, ...] = (*(family.name for family in FAMILIES), generic.NAME)


class UnknownDenoiserError(ValueError):
    """The pipeline's denoiser is of no known family."""


def family_of(pipe: DiffusionPipeline) -> Family:
    """Finds the family of the pipeline's denoiser.

    Raises:
        UnknownDenoiserError: The denoiser is of no known family; the message lists the pipeline's components.
        ValueError: The pipeline has several denoisers.
    """
    family = _known_family(pipe)
    if family is None:
        held = {name: type(part).__name__ for name, part in pipe.components.items()}
        raise UnknownDenoiserError(
            f"{type(pipe).__name__} has no denoiser of a known kind ({known_classes()}); it holds {held}. With "
            "--generic (generic=True) it is quantized by the blocks that diffusers declares"
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
    held = (family for family in FAMILIES if family.describes(getattr(pipe, family.component, None)))
    family = next(held, None)
    if family is not None:
        _require_one_denoiser(pipe, family)
    return family


def _require_one_denoiser(pipe: DiffusionPipeline, family: Family) -> None:
    """Refuses pipelines that change the denoiser during a generation, as Wan 2.2's do.

    Raises:
        ValueError: The pipeline has several denoisers.
    """
    names = [name for name, part in pipe.components.items() if family.describes(part)]
    if len(names) > 1:
        raise ValueError(
            f"{type(pipe).__name__} has {len(names)} denoisers ({', '.join(names)}), each for a range of timesteps; "
            "bitbrush quantizes pipelines with one: quantize a model with a single denoiser, e.g. Wan 2.1"
        )


def known_classes() -> str:
    """Lists the classes of denoisers that have a family."""
    return ", ".join(family.denoiser_class for family in FAMILIES)


def family_of_network(denoiser: nn.Module) -> Family | None:
    """Finds the family of a denoiser; None if it has none."""
    return next((family for family in FAMILIES if family.describes(denoiser)), None)


def known_fusions(denoiser: nn.Module) -> tuple[Fusion, ...]:
    """Returns the fused ops of a denoiser or of a VAE's decoder; none if its family is unknown."""
    if isinstance(denoiser, Decoder):
        return unet_fusions(denoiser)
    family = family_of_network(denoiser)
    return family.fusions(denoiser) if family else ()
