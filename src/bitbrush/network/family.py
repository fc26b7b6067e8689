"""Description of a denoiser architecture."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from bitbrush.network.declared import declared_blocks, layers_next_to_latents
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
    """Description of one denoiser architecture. A name and a class suffice where diffusers declares the rest.

    Args:
        name: Name of the family.
        denoiser_class: Name of the denoiser's class. It is a name because older diffusers lack some classes.
        component: The pipeline's name for the denoiser.
        blocks: Names of the blocks that are reconstructed as a whole; layers outside them are reconstructed singly.
        high_precision_layers: Layers next to the latents, which get 8-bit weights and 16-bit activations.
        fusions: Ops that a runtime may fuse.
        skip_readers: Convolutions that read a concatenation with a skip connection, by name, and the channel at which
            the skip begins.
        text_layers: Layers that read a text, tokens in the second dimension, whose first token may be the same in all
            texts.
    """

    name: str
    denoiser_class: str
    component: str = "transformer"
    blocks: Callable[[nn.Module], tuple[str, ...]] = declared_blocks
    high_precision_layers: Callable[[nn.Module], tuple[str, ...]] = layers_next_to_latents
    fusions: Callable[[nn.Module], tuple[Fusion, ...]] = no_fusions
    skip_readers: Callable[[nn.Module], Mapping[str, int]] = no_skip_readers
    text_layers: Callable[[nn.Module], tuple[str, ...]] = no_text_layers

    def describes(self, network: object) -> bool:
        """Returns whether ``network`` is of the family's class or of one derived from it."""
        return any(kind.__name__ == self.denoiser_class for kind in type(network).__mro__)
