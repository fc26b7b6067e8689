"""The denoisers that are timed, their random weights on disk, and what they are called with.

The configurations are those of the published Stable Diffusion 1.5 and SDXL base denoisers, written out. Weights are
random and seeded: the speed of a kernel depends on shapes, not on what the numbers mean.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bitbrush.zoo import model_path

SEED = 0
BATCH = 2
TEXT_TOKENS = 77
TIMESTEPS = tuple(range(981, 0, -20))
"""Fifty of a thousand, as DDIM with leading spacing and an offset of one chooses them."""

_SHARD_BYTES = 1 << 30
_INDEX = "diffusion_pytorch_model.safetensors.index.json"

SD15: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-05,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
"""859.5 million parameters."""

SDXL: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-05,
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""2567 million parameters."""


@dataclass(frozen=True)
class Model:
    """A denoiser: random of ``config``, or the bundled one if that is None; latents it is timed at unless asked."""

    name: str
    config: dict[str, Any] | None
    text_width: int
    latents: tuple[int, ...]
    pooled_width: int | None = None


MODELS = {
    model.name: model
    for model in (
        Model("emoji-sd", None, text_width=128, latents=(16, 32)),
        Model("sd15", SD15, text_width=768, latents=(32, 64)),
        Model("sdxl", SDXL, text_width=2048, latents=(32,), pooled_width=1280),
    )
}


@dataclass(frozen=True)
class Inputs:
    """``latents`` (2, 4, L, L) and ``conditioning``, the denoiser's other arguments; float32."""

    latents: Tensor
    conditioning: dict[str, Any]

    @classmethod
    def of(cls, model: Model, size: int) -> "Inputs":
        generator = torch.Generator().manual_seed(SEED)
        latents = torch.randn(BATCH, 4, size, size, generator=generator)
        text = torch.randn(BATCH, TEXT_TOKENS, model.text_width, generator=generator)
        conditioning: dict[str, Any] = {"encoder_hidden_states": text}
        if model.pooled_width is not None:
            pooled = torch.randn(BATCH, model.pooled_width, generator=generator)
            sizes = torch.tensor([[8.0 * size, 8.0 * size, 0.0, 0.0, 8.0 * size, 8.0 * size]] * BATCH)
            conditioning["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
        return cls(latents, conditioning)

    def conditioning_as(self, dtype: torch.dtype) -> dict[str, Any]:
        return {
            key: {name: one.to(dtype) for name, one in value.items()} if isinstance(value, dict) else value.to(dtype)
            for key, value in self.conditioning.items()
        }


def source(model: Model, dtype: torch.dtype, scratch: Path) -> Path:
    """The folder that ``from_pretrained`` reads the denoiser from, its weights stored as ``dtype``.

    Made on first use, from the float32 ones if these are there, never holding more than a gigabyte of weights.
    """
    wide, folder = (scratch / model.name / str(one).removeprefix("torch.") for one in (torch.float32, dtype))
    if not (folder / _INDEX).exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = _weights(_on_meta(model)) if model.config else _bundled()
        tensors = _stored(wide) if (wide / _INDEX).exists() else made
        _write(folder, ((name, tensor.to(dtype)) for name, tensor in tensors), _on_meta(model))
    return folder


def _on_meta(model: Model) -> Any:
    config = model.config or UNet2DConditionModel.load_config(str(_bundled_path()))
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(config)


def _weights(denoiser: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Torch's own initial values, module by module."""
    torch.manual_seed(SEED)
    for name, module in denoiser.named_modules():
        if not dict(module.named_parameters(recurse=False)):
            continue
        module.to_empty(device="cpu", recurse=False)
        module.reset_parameters()  # type: ignore[operator]
        yield from ((f"{name}.{key}", value.detach()) for key, value in module.named_parameters(recurse=False))
        module.to("meta")


def _bundled_path() -> Path:
    path = model_path("emoji-sd")
    assert path is not None
    return path / "unet"


def _bundled() -> Iterator[tuple[str, Tensor]]:
    stored = _sorted(_bundled_path() / "diffusion_pytorch_model.safetensors")
    yield from ((name, tensor.float()) for name, tensor in stored)


def _stored(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for file in sorted(folder.glob("*.safetensors")):
        yield from _sorted(file)


def _sorted(file: Path) -> Iterator[tuple[str, Tensor]]:
    yield from sorted(load_file(file).items())


def _write(folder: Path, tensors: Iterator[tuple[str, Tensor]], denoiser: Any) -> None:
    """Shards, then the index, which marks the folder as complete."""
    weight_map: dict[str, str] = {}
    total, shard, held = 0, {}, 0

    def flush() -> None:
        nonlocal shard, held
        file = f"diffusion_pytorch_model-{len(set(weight_map.values())):05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
        shard, held = {}, 0

    for name, tensor in tensors:
        shard[name] = tensor.contiguous()
        held += tensor.nbytes
        total += tensor.nbytes
        if held >= _SHARD_BYTES:
            flush()
    if shard:
        flush()
    denoiser.save_config(folder)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / _INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
