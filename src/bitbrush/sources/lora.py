"""LoRA files fused into the full-precision weights before anything is quantized."""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from torch import nn

DOWN = ("lora_A.weight", "lora_down.weight", "lora.down.weight", "lora_linear_layer.down.weight")
"""How the first of a layer's two factors is called, by the programs that write LoRAs."""


@dataclass(frozen=True)
class Lora:
    """A safetensors file of low-rank updates, added ``scale`` times."""

    path: Path
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``FILE`` or ``FILE@SCALE``."""
        file, at, scale = text.rpartition("@")
        if not at:
            return cls(Path(text))
        try:
            return cls(Path(file), float(scale))
        except ValueError:
            if Path(text).exists():
                return cls(Path(text))
            raise ValueError(f"LoRA is {text!r}; expected FILE or FILE@SCALE, e.g. style.safetensors@0.8") from None

    def require(self) -> None:
        """Raises ValueError if there is no such file, or nothing to load it with."""
        if not self.path.is_file():
            raise ValueError(f"LoRA {self.path} is no file")
        try:
            _held_layers(self.path)
        except SafetensorError as error:
            raise ValueError(f"LoRA {self.path} is no intact safetensors file: {error}") from error
        if importlib.util.find_spec("peft") is None:
            raise ValueError(f"LoRA {self.path} needs the package peft: pip install 'bitbrush[lora]'")

    def facts(self) -> dict[str, Any]:
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"file": self.path.name, "sha256": digest, "scale": self.scale}


def fuse_lora(pipe: DiffusionPipeline, lora: Lora) -> int:
    """Adds the updates to the weights of ``pipe``, and returns of how many layers. No adapter stays behind.

    Raises ValueError if a layer's shape is another, if the file matches no layer, or if there is no such file or no
    package to load it with.
    """
    lora.require()
    if not hasattr(pipe, "load_lora_weights"):
        raise ValueError(f"{type(pipe).__name__} takes no LoRA, so {lora.path} cannot be fused")
    try:
        pipe.load_lora_weights(str(lora.path.parent), weight_name=lora.path.name, adapter_name="fused")
    except (RuntimeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"LoRA {lora.path} does not fit {type(pipe).__name__}; it was made for another architecture: "
            f"{_first_lines(error)}"
        ) from error
    layers, held = _adapted_layers(pipe), _held_layers(lora.path)
    if layers < max(held, 1):
        raise ValueError(
            f"LoRA {lora.path} holds updates of {held} layers, of which {layers or 'none'} are in "
            f"{type(pipe).__name__}; it was made for another model"
        )
    pipe.fuse_lora(lora_scale=lora.scale, adapter_names=["fused"])
    pipe.unload_lora_weights()
    return layers


def _adapted_layers(pipe: DiffusionPipeline) -> int:
    networks = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    return sum("fused" in getattr(module, "lora_A", {}) for network in networks for module in network.modules())


def _held_layers(path: Path) -> int:
    """Layers that the file names. A model may have more: one that is split into queries, keys and values, say."""
    with safe_open(path, framework="pt") as file:
        return sum(key.endswith(DOWN) for key in file.keys())  # noqa: SIM118 - no dictionary


def _first_lines(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
