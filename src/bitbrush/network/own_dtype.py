"""Networks that are not quantized, in bfloat16 or in another memory layout, behind the interface that they had.

Pipelines take the dtype of a text encoder for that of the latents, and mix that of a VAE with float32. So a network in
bfloat16 still reports float32, takes any floating-point type and returns the one that it was given.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bitbrush.network.extension import Extension, extend_

AUTOENCODER_PARTS = ("encoder", "decoder")
"""Parts of an autoencoder that do its work; what lies between them and the latents is small and stays float32."""


class OwnDtype(Extension, nn.Module):
    """Extension of a network that computes in the dtype of its weights and answers in that of its first tensor.

    A network that takes no floating-point tensor, such as a text encoder, answers in float32.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Takes the arguments of the network's own forward."""
        given = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.is_floating_point()]
        answer = given[0].dtype if given else torch.float32
        own = next(parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())
        args, kwargs = _cast((args, kwargs), own)
        listed: Any = super()
        return _cast(listed.forward(*args, **kwargs), answer)


class FiniteImages(Extension, nn.Module):
    """Extension of an autoencoder's decoder that refuses images which overflow float16."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Takes the arguments of the decoder's own forward.

        Raises:
            ValueError: The image is NaN or infinite.
        """
        listed: Any = super()
        image = listed.forward(*args, **kwargs)
        if isinstance(image, Tensor) and image.dtype == torch.float16 and not bool(image.isfinite().all()):
            raise ValueError(
                "the VAE computes in float16, and its activations overflow: the image is NaN. Load it in another type, "
                'torch_dtype={"vae": torch.bfloat16, "default": torch.float16}, or leave torch_dtype out'
            )
        return image


class ReportsFloat32(Extension, nn.Module):
    """Extension of a network whose interface is float32, whatever it computes in."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of what the network returns."""
        return torch.float32


def _cast(values: Any, dtype: torch.dtype) -> Any:
    return pytree.tree_map_only(Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, values)


def is_autoencoder(network: nn.Module) -> bool:
    """Tells whether a network decodes latents to images."""
    return callable(getattr(network, "decode", None)) and isinstance(getattr(network, "decoder", None), nn.Module)


def is_text_encoder(name: str) -> bool:
    """Tells whether diffusers' name of a component is that of a text encoder, e.g. ``text_encoder_2``."""
    return name.startswith("text_encoder")


def set_channels_last_(autoencoder: nn.Module) -> None:
    """Lays the weights of an autoencoder's convolutions out as CPUs compute them; results differ by rounding."""
    for layer in autoencoder.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)


def compute_in_bfloat16(network: nn.Module) -> None:
    """Makes an autoencoder or a text encoder compute in bfloat16, in place; its interface stays float32.

    The layers between an autoencoder's parts and the latents stay float32.
    """
    if is_autoencoder(network):
        for name, part in network.named_children():
            extend_(part.to(torch.bfloat16 if name in AUTOENCODER_PARTS else torch.float32), OwnDtype)
    else:
        extend_(network.to(torch.bfloat16), OwnDtype)
    extend_(network, ReportsFloat32)


def refuse_overflow_(autoencoder: nn.Module) -> None:
    """Makes an autoencoder in float16 raise ValueError where its images overflow, as those of SDXL's do."""
    decoder = autoencoder.decoder
    assert isinstance(decoder, nn.Module)
    extend_(decoder, FiniteImages)
