"""GGUF files of a denoiser in its original layout, read by diffusers; ``gguf:FILE``."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import GGUFQuantizationConfig
from torch import nn

from bitbrush.bench.peers.peer import Peer


def _quantize(denoiser: nn.Module, file: str) -> nn.Module:
    with TemporaryDirectory() as folder:
        denoiser.save_config(Path(folder, "denoiser"))  # type: ignore[operator]  # of diffusers' mixin
        loaded: nn.Module = type(denoiser).from_single_file(  # type: ignore[attr-defined]
            file,
            config=folder,
            subfolder="denoiser",
            quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
            torch_dtype=torch.float32,
        )
    return loaded


GGUF = Peer("gguf", "gguf", {}, _quantize)
