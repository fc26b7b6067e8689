"""Changes that a quantized denoiser refuses: its layers would not be quantized, or their integers would be cast."""

from collections.abc import Callable
from typing import Any, Never

from torch import nn

_LORA = (
    "a quantized denoiser takes no LoRA while it runs. Fuse it into the full-precision weights and quantize those: "
    "bitbrush quantize MODEL --lora FILE@SCALE, or pipe.load_lora_weights(...), pipe.fuse_lora() and "
    "pipe.unload_lora_weights() before bitbrush.quantize(pipe, ...)"
)
_JOINED = (
    "the projections of a quantized denoiser cannot be joined: the joined layer would not be quantized. Leave them as "
    "they are, the cuda runtime joins them by itself; pipe.vae.fuse_qkv_projections() joins those of the VAE"
)
_STORED = (
    "a quantized denoiser's weights are not stored in another dtype: they are integers. "
    "bitbrush.load(..., memory='low') needs less memory"
)


def refuse_unquantized(denoiser: nn.Module) -> None:
    """Makes ``denoiser`` raise ValueError when a LoRA, joined projections or casts of its weights are requested."""
    _set(denoiser, "add_adapter", _refuse_adapter)
    _set(denoiser, "load_lora_adapter", _refuse_lora)
    _set(denoiser, "enable_layerwise_casting", _refuse_storage)
    for module in denoiser.modules():
        _set(module, "fuse_qkv_projections", _refuse_joined)
        _set(module, "fuse_projections", _refuse_joined)


def _set(module: nn.Module, name: str, refusal: Callable[..., Any]) -> None:
    if hasattr(type(module), name):
        object.__setattr__(module, name, refusal)


def _refuse_adapter(*_: Any, **__: Any) -> Never:
    raise ValueError(_LORA)


def _refuse_lora(weights: Any, *_: Any, prefix: str | None = "transformer", **__: Any) -> None:
    """Refuses a LoRA of the denoiser; pipelines also call this for a LoRA of the text encoder alone."""
    elsewhere = isinstance(weights, dict) and prefix and not any(key.startswith(f"{prefix}.") for key in weights)
    if not elsewhere:
        raise ValueError(_LORA)


def _refuse_joined(*_: Any, **__: Any) -> Never:
    raise ValueError(_JOINED)


def _refuse_storage(*_: Any, **__: Any) -> Never:
    raise ValueError(_STORED)
