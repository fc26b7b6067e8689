"""Adapters (LoRA) that are attached to a lowered denoiser by diffusers' own methods.

A layer with adapters is PEFT's wrapper around a :class:`~bitbrush.runtime.faces.Face`, which calls the quantized layer.
An adapter gets the layer's input before quantization. Nothing of it remains after its removal.
"""

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Never

import torch
from torch import Tensor, nn

from bitbrush.network.extension import Extension, extend_
from bitbrush.network.lazy_weights import device_of, weight_shape
from bitbrush.runtime.faces import FACED, Face, conceal, faces_of, reveal, set_weight_shape
from bitbrush.runtime.snapshot import Baseline
from bitbrush.runtime.wrappers import adapters_of, base_of, is_wrapper, wrappers_in

_ATTRIBUTE = "bitbrush_faces"
_FUSE = (
    "a LoRA cannot be fused into the integers of a quantized denoiser, and need not be: leave it loaded, "
    "pipe.set_adapters(names, weights) scales it. To fuse it for good, quantize with it: bitbrush quantize MODEL "
    "--lora FILE@SCALE. pipe.fuse_lora(components=['text_encoder']) fuses that of the text encoder"
)
_FACTOR = re.compile(r"(\.lora_|\.lora\.|_lora\.|\.lora_linear_layer\.)(A|B|down|up)\.weight$")


@dataclass(frozen=True)
class Faces:
    """Faces of a denoiser's layers by name, with the dtype and device that adapters compute with."""

    faces: dict[str, Face]
    dtype: torch.dtype
    device: torch.device

    def set_weight_shapes(self, denoiser: nn.Module) -> None:
        """Gives the present layers weights without values."""
        for name, layer in denoiser.named_modules():
            if name in self.faces and isinstance(layer, FACED) and "weight" not in vars(layer):
                set_weight_shape(layer, self.faces[name], self.dtype, self.device)


class StateDict(OrderedDict[str, Tensor]):
    """Tensors of a denoiser; FLUX's loader of LoRAs also asks for weights that are integers, to see their shapes."""

    faces: Mapping[str, Face]

    def __missing__(self, key: str) -> Tensor:
        name, _, own = key.rpartition(".")
        if own != "weight" or name not in self.faces:
            raise KeyError(key)
        face: Any = self.faces[name]
        weight: Tensor = face.weight
        return weight

    def __reduce__(self) -> Any:
        return OrderedDict(self).__reduce__()


class AdaptableDenoiser(Extension, nn.Module):
    """Mixin for a lowered denoiser whose class loads adapters."""

    def load_lora_adapter(self, source: Any, *args: Any, **kwargs: Any) -> None:
        """Attaches or swaps an adapter as diffusers does; takes the same arguments.

        Raises:
            ValueError: The denoiser lacks a layer of the adapter, or a factor has another shape.
        """
        if isinstance(source, Mapping):
            prefix = args[0] if args else kwargs.get("prefix", "transformer")
            _require_fit(_faces(self).faces, _below(source, prefix), type(self).__name__)
        with _changing_adapters(self):
            super().load_lora_adapter(source, *args, **kwargs)  # type: ignore[misc]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the tensors as torch does."""
        state = super().state_dict(*args, **kwargs)
        if type(state) is not OrderedDict:
            return state
        known = StateDict(state)
        vars(known).update(vars(state), faces=_faces(self).faces)
        return known

    def add_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Attaches an adapter of a PEFT configuration as diffusers does."""
        with _changing_adapters(self):
            super().add_adapter(*args, **kwargs)  # type: ignore[misc]

    def delete_adapters(self, *args: Any, **kwargs: Any) -> None:
        """Deletes adapters as diffusers does."""
        with _changing_adapters(self):
            super().delete_adapters(*args, **kwargs)  # type: ignore[misc]

    def unload_lora(self) -> None:
        """Removes all adapters as diffusers does."""
        with _changing_adapters(self):
            super().unload_lora()  # type: ignore[misc]

    def fuse_lora(self, *_: Any, **__: Any) -> Never:
        """Refuses to fuse adapters.

        Raises:
            ValueError: Always; a loaded adapter needs no fusing.
        """
        raise ValueError(_FUSE)


def make_adaptable_(denoiser: nn.Module, dtype: torch.dtype, device: torch.device | None) -> None:
    """Prepares a network that is about to be lowered for adapters, if its class loads any, and for reads of weights.

    T5 reads the dtype of a weight before it calls the layer.

    Args:
        denoiser: Changed in place; its class becomes an :class:`AdaptableDenoiser`.
        dtype: Dtype that adapters compute with.
        device: Device that they compute on; None: the denoiser's.
    """
    if hasattr(denoiser, "load_lora_adapter"):
        extend_(denoiser, AdaptableDenoiser)
    faces = Faces(faces_of(denoiser), dtype, device or device_of(denoiser))
    setattr(denoiser, _ATTRIBUTE, faces)
    faces.set_weight_shapes(denoiser)


def show_weight_shapes(denoiser: nn.Module) -> None:
    """Gives the quantized layers of a lowered network the weights without values that loaders look at."""
    _faces(denoiser).set_weight_shapes(denoiser)


def _faces(denoiser: nn.Module) -> Faces:
    faces = getattr(denoiser, _ATTRIBUTE)
    assert isinstance(faces, Faces)
    return faces


@contextmanager
def _changing_adapters(denoiser: nn.Module) -> Iterator[None]:
    """Shows PEFT the faces of all quantized layers, and removes those that it leaves without adapters."""
    baselines = [(one, one.holds()) for one in _baselines(denoiser)]
    _show_faces(denoiser)
    try:
        yield
    finally:
        _remove_unused(denoiser)
        for wrapper in wrappers_in(denoiser):
            _cast(wrapper, _faces(denoiser).dtype)
        for baseline, held in baselines:
            baseline.readapt(held=held)


def _baselines(denoiser: nn.Module) -> list[Baseline]:
    forwards = (vars(module).get("forward") for module in denoiser.modules())
    found = (getattr(forward, "baseline", None) for forward in forwards)
    return [one for one in found if isinstance(one, Baseline)]


def _show_faces(denoiser: nn.Module) -> None:
    modules = dict(denoiser.named_modules())
    for name, face in _faces(denoiser).faces.items():
        layer = modules.get(name)
        if isinstance(layer, FACED):
            parent, _, own = name.rpartition(".")
            modules[parent]._modules[own] = reveal(face, layer)


def _remove_unused(denoiser: nn.Module) -> None:
    """Puts quantized layers back where neither a wrapper with adapters nor anything else needs their face."""
    for parent in list(denoiser.modules()):
        for own, module in parent._modules.items():
            if module is not None and not is_wrapper(parent):
                parent._modules[own] = _needed(module)


def _needed(module: nn.Module) -> nn.Module:
    if is_wrapper(module):
        return module if adapters_of(module) else _needed(base_of(module))
    return conceal(module)


def _cast(wrapper: nn.Module, dtype: torch.dtype) -> None:
    """Casts factors: an adapter that is swapped in place keeps the dtype of its file."""
    for name, parameter in wrapper.named_parameters():
        if not name.startswith("base_layer.") and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def _below(tensors: Mapping[str, Tensor], prefix: str | None) -> dict[str, Tensor]:
    start = f"{prefix}." if prefix else ""
    return {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}


def _require_fit(faces: Mapping[str, Face], tensors: Mapping[str, Tensor], network: str) -> None:
    """Checks every factor against its layer.

    Raises:
        ValueError: A layer is unknown or has another shape.
    """
    for key, factor in tensors.items():
        found = _FACTOR.search(key)
        if found is None:
            continue
        name = key[: found.start()].replace(".processor.", ".")
        face = faces.get(name) or faces.get(f"{name}.0")
        if face is None:
            raise ValueError(f"the LoRA has layer {name}, and {network} has none; it was made for another model")
        out, *columns = weight_shape(face)
        down = found[2] in ("A", "down")
        size, expected = (tuple(factor.shape[1:]), tuple(columns)) if down else (factor.shape[:1], (out,))
        if tuple(size) != expected:
            raise ValueError(
                f"the LoRA's {key} is {tuple(factor.shape)}, and layer {name} of {network} has a weight of "
                f"{(out, *columns)}; it was made for another model"
            )
