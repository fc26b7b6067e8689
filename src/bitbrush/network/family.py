"""What has to be known of a denoiser architecture."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Family:
    """One denoiser architecture.

    ``component``: the pipeline's name for it. ``edge_layers``: first and last layer, kept at 8-bit weights and relaxed
    activations. ``block_classes``: the blocks that are reconstructed as a whole; layers outside them singly.
    """

    name: str
    component: str
    denoiser_class: type[nn.Module]
    edge_layers: tuple[str, ...]
    block_classes: tuple[type[nn.Module], ...]
