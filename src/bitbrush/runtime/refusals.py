"""Changes that a quantized denoiser refuses: its layers would not be quantized, or their integers would be cast."""

from collections.abc import Callable
from typing import Any, Never

from torch import nn

from bitbrush.runtime.integer_weight import WithoutFloatWeight

_JOINED = (
    "the projections of a quantized denoiser cannot be joined: the joined layer would not be quantized. Leave them as "
    "they are, the cuda runtime joins them by itself; pipe.vae.fuse_qkv_projections() joins those of the VAE"
)
_STORED = (
    "a quantized denoiser's weights are not stored in another dtype: they are integers. "
    "bitbrush.load(..., memory='low') needs less memory"
)
_ADAPTED = (
    "a quantized text encoder takes no adapters: fuse the LoRA before, bitbrush quantize MODEL --lora FILE, or "
    "quantize with text_encoders left out of networks"
)


_UNSMOOTHED = (
    "smoothed energy guidance would change nothing: it hooks queries of nn.Linear, and a quantized denoiser computes "
    "them in integers. Use bitbrush.load(..., runtime='reference'), or perturbed attention (enable_pag=True)"
)


def prepare_smoothing(original: Callable[..., Any], guider: Any, denoiser: nn.Module) -> Any:
    """Replaces ``SmoothedEnergyGuidance.prepare_models``, which passes over layers that are no ``nn.Linear``.

    Args:
        original: The method of diffusers.
        guider: Guider of a modular pipeline.
        denoiser: Denoiser to hook.

    Raises:
        ValueError: The denoiser computes in integers.
    """
    if any(isinstance(module, WithoutFloatWeight) for module in denoiser.modules()):
        raise ValueError(_UNSMOOTHED)
    return original(guider, denoiser)


def refuse_unquantized(denoiser: nn.Module) -> None:
    """Makes ``denoiser`` raise ValueError when joined projections or casts of its weights are requested."""
    _set(denoiser, "enable_layerwise_casting", _refuse_storage)
    if not hasattr(denoiser, "load_lora_adapter"):
        for name in ("load_adapter", "add_adapter"):
            _set(denoiser, name, _refuse_adapter)
    for module in denoiser.modules():
        _set(module, "fuse_qkv_projections", _refuse_joined)
        _set(module, "fuse_projections", _refuse_joined)


def _set(module: nn.Module, name: str, refusal: Callable[..., Any]) -> None:
    if hasattr(type(module), name):
        object.__setattr__(module, name, refusal)


def _refuse_joined(*_: Any, **__: Any) -> Never:
    raise ValueError(_JOINED)


def _refuse_storage(*_: Any, **__: Any) -> Never:
    raise ValueError(_STORED)


def _refuse_adapter(*_: Any, **__: Any) -> Never:
    raise ValueError(_ADAPTED)
