"""Description of a denoiser architecture."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from bitbrush.network.fusions import Fusion


def no_fusions(_: nn.Module) -> tuple[Fusion, ...]:
    """Returns no fused ops: every layer is computed by itself."""
    return ()


def no_skip_readers(_: nn.Module) -> Mapping[str, int]:
    """Returns no layers: none reads a skip concatenation."""
    return MappingProxyType({})


def no_text_layers(_: nn.Module) -> tuple[str, ...]:
    """Returns no layers: none reads a text that begins with a start token."""
    return ()


@dataclass(frozen=True)
class Family:
    """Description of one denoiser architecture.

    Args:
        name: Name of the family.
        component: The pipeline's name for the denoiser.
        denoiser_class: Class of the denoiser.
        high_precision_layers: Layers next to the latents, which get 8-bit weights and 16-bit activations.
        block_classes: Blocks that are reconstructed as a whole; layers outside them are reconstructed singly.
        fusions: Ops that a runtime may fuse.
        skip_readers: Convolutions that read a concatenation with a skip connection, by name, and the channel at which
            the skip begins.
        text_layers: Layers that read a text, tokens in the second dimension, whose first token may be the same in all
            texts.
    """

    name: str
    component: str
    denoiser_class: type[nn.Module]
    high_precision_layers: Callable[[nn.Module], tuple[str, ...]]
    block_classes: tuple[type[nn.Module], ...]
    fusions: Callable[[nn.Module], tuple[Fusion, ...]] = no_fusions
    skip_readers: Callable[[nn.Module], Mapping[str, int]] = no_skip_readers
    text_layers: Callable[[nn.Module], tuple[str, ...]] = no_text_layers
