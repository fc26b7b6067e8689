"""What has to be known of a denoiser architecture."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from bitbrush.network.fusions import Fusion


def no_fusions(_: nn.Module) -> tuple[Fusion, ...]:
    """Every layer is computed by itself."""
    return ()


def no_skip_readers(_: nn.Module) -> Mapping[str, int]:
    """No layer reads a skip concatenation."""
    return MappingProxyType({})


def no_text_layers(_: nn.Module) -> tuple[str, ...]:
    """No layer reads a text that begins with a start token."""
    return ()


@dataclass(frozen=True)
class Family:
    """One denoiser architecture.

    ``component``: the pipeline's name for it. ``high_precision_layers``: the layers of a denoiser that lie next to the
    latents, which get 8-bit weights and 16-bit activations. ``block_classes``: the blocks that are reconstructed as a
    whole; layers outside them singly. ``fusions``: what a runtime may compute in one go. ``skip_readers``: the
    convolutions that read a concatenation with a skip connection, by name, and at which channel the skip begins.
    ``text_layers``: that read a text whose first token may be the same in all, tokens in the second dimension.
    """

    name: str
    component: str
    denoiser_class: type[nn.Module]
    high_precision_layers: Callable[[nn.Module], tuple[str, ...]]
    block_classes: tuple[type[nn.Module], ...]
    fusions: Callable[[nn.Module], tuple[Fusion, ...]] = no_fusions
    skip_readers: Callable[[nn.Module], Mapping[str, int]] = no_skip_readers
    text_layers: Callable[[nn.Module], tuple[str, ...]] = no_text_layers
