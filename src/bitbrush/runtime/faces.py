"""Stand-ins by which PEFT attaches adapters to layers that are neither ``nn.Linear`` nor ``nn.Conv2d``.

PEFT replaces a layer by a wrapper, which calls the layer and adds the adapters' output for the same input. It knows a
layer by its class and reads the geometry, device and dtype. A face has those of the original layer and calls the
quantized one. It is in the denoiser only while an adapter is attached, so there is no cost otherwise.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bitbrush.network.lazy_weights import weight_shape
from bitbrush.network.low_rank import BranchedLayer
from bitbrush.network.skip_inputs import SplitConv2d
from bitbrush.runtime.integer_weight import WithoutFloatWeight
from bitbrush.runtime.wrappers import BASE

FACED = WithoutFloatWeight, SplitConv2d, BranchedLayer
"""Classes of the layers that need a face."""
_LAYER = "quantized"


class Face(nn.Module):
    """Base of the faces. Without a quantized layer it is a plain layer: PEFT makes factors of its layer's class."""

    weight: Tensor

    def reset_parameters(self) -> None:
        """Draws initial values, unless there is no memory for them."""
        if not self.weight.is_meta:
            own: Any = super()
            own.reset_parameters()

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Computes the quantized layer on ``x``, or returns ``y`` if a fused block has computed it."""
        layer = quantized_layer(self)
        if layer is None:
            own: Any = super()
            plain: Tensor = own.forward(x)
            return plain
        output: Tensor = layer(x) if y is None else y
        return output


class LinearFace(Face, nn.Linear):
    """Face of a linear layer."""


class Conv2dFace(Face, nn.Conv2d):
    """Face of a convolution."""


class NoValues(Tensor):
    """Weight of a face: it has a shape, a device and a dtype, and every computation with it is refused."""

    @staticmethod
    def __new__(cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> "NoValues":
        """Creates a tensor without memory."""
        made: NoValues = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        return made

    def __deepcopy__(self, _: dict[int, Any]) -> "NoValues":
        return self

    def __reduce_ex__(self, _: Any) -> tuple[Any, ...]:
        return NoValues, (tuple(self.shape), self.dtype, self.device)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"NoValues({tuple(self.shape)}, {self.dtype}, {self.device})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise ValueError(
            "an integer layer has no weight in floating point, which fusing, DoRA, pruning and adapters that start "
            "from the weights need; use plain LoRA, runtime='reference', or change the full-precision weights before "
            "bitbrush.quantize(pipe, ...)"
        )


def faces_of(denoiser: nn.Module) -> dict[str, Face]:
    """Makes the face of each layer of a denoiser that is about to be lowered, by name, on the meta device.

    The parts of a split or branched layer have no face of their own: an adapter names the layer.
    """
    faces: dict[str, Face] = {}
    for name, module in denoiser.named_modules():
        if _geometry(module) is not None and not any(outer in faces for outer in _parents(name)):
            faces[name] = _face(module)
    return faces


def set_weight_shape(layer: nn.Module, face: Face, dtype: torch.dtype, device: torch.device) -> None:
    """Gives ``layer`` a weight without values, which loaders look at; adapters get its ``dtype`` and ``device``."""
    object.__setattr__(layer, "weight", NoValues(weight_shape(face), dtype, device))


def reveal(face: Face, layer: nn.Module) -> Face:
    """Makes ``face`` stand for ``layer``."""
    face._parameters.pop("weight", None)
    object.__setattr__(face, "weight", layer.weight)
    face.add_module(_LAYER, layer)
    return face


def quantized_layer(module: nn.Module) -> nn.Module | None:
    """Returns the layer that a face stands for; None for other modules."""
    return module._modules.get(_LAYER) if isinstance(module, Face) else None


def innermost(root: nn.Module) -> dict[str, nn.Module]:
    """Maps the names that layers had before adapters were attached to the layers that adapters wrap."""
    added = BASE, _LAYER
    return {
        ".".join(part for part in name.split(".") if part not in added): module for name, module in root.named_modules()
    }


def conceal(module: nn.Module) -> nn.Module:
    """Returns the layer that ``module`` stands for, which it stands for no longer; ``module`` itself for no face."""
    layer = quantized_layer(module)
    if layer is None:
        return module
    del module._modules[_LAYER]
    return layer


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _geometry(module: nn.Module) -> nn.Conv2d | nn.Linear | None:
    """Returns a layer with the geometry of ``module``, apart from input channels; None if no adapter may name it."""
    match module:
        case SplitConv2d():
            return _geometry(module.hidden)
        case BranchedLayer():
            return _geometry(module.residual)
        case nn.Conv2d() | nn.Linear():
            return module
    return None


def _face(module: Any) -> Face:
    like = _geometry(module)
    if isinstance(like, nn.Conv2d):
        keys = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        own: dict[str, Any] = {key: getattr(like, key) for key in keys}
        return Conv2dFace(module.in_channels, module.out_channels, bias=False, device="meta", **own)
    return LinearFace(module.in_features, module.out_features, bias=False, device="meta")
