"""LoRA files, fused into the full-precision weights before quantization."""

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from bitbrush.session.digests import file_digest
from bitbrush.sources.networks import is_finite

FACTORS = {
    "lora_A.weight": "lora_B.weight",
    "lora_down.weight": "lora_up.weight",
    "lora.down.weight": "lora.up.weight",
    "lora_linear_layer.down.weight": "lora_linear_layer.up.weight",
}
"""Names of a layer's two factors, in the files of different programs."""

BESIDE = ("alpha", "lora_B.bias")
"""Endings of the other tensors of a layer's update."""
LARGEST_SCALE = 100
PAIRS = FACTORS | {up: down for down, up in FACTORS.items()}
PEFT_METADATA = "lora_adapter_metadata"
"""Metadata key under which files of diffusers store ranks and alphas."""

TEXT_ENCODERS = {
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
}
"""Prefixes of text encoder layers in files of kohya's programs, with the pipelines' component names."""


@dataclass(frozen=True)
class Lora:
    """Low-rank updates in a safetensors file, multiplied by ``scale``."""

    path: Path
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses ``FILE`` or ``FILE@SCALE``.

        Raises:
            ValueError: The scale is not a number, and there is no file of the whole name.
        """
        file, at, scale = text.rpartition("@")
        if not at:
            return cls(Path(text))
        try:
            return cls(Path(file), float(scale))
        except ValueError as error:
            if Path(text).exists():
                return cls(Path(text))
            raise ValueError(
                f"LoRA is {text!r} ({error}); expected FILE or FILE@SCALE, e.g. style.safetensors@0.8"
            ) from None

    def __post_init__(self) -> None:
        if not abs(self.scale) <= LARGEST_SCALE:  # NaN is not either
            raise ValueError(f"scale is {self.scale:g}; it must be from -{LARGEST_SCALE} to {LARGEST_SCALE}")

    def require(self) -> None:
        """Checks that the file can be loaded as a LoRA.

        Raises:
            ValueError: The file is missing or damaged, is a DoRA, lacks a factor, or the package peft is missing.
        """
        if not self.path.is_file():
            raise ValueError(f"LoRA {self.path} is no file")
        try:
            with safe_open(self.path, framework="pt") as file:
                shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
                kinds = {key: file.get_slice(key).get_dtype() for key in shapes}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"LoRA {self.path} is no intact safetensors file: {error}; download it again") from error
        keys = set(shapes)
        if single := sorted(key for key in keys if _ending(key) and _other_factor(key) not in keys):
            raise ValueError(f"LoRA {self.path} has {single[0]} without its other factor; download it again")
        if magnitudes := sorted(key for key in keys if key.endswith("dora_scale")):  # diffusers ignores them
            raise ValueError(f"LoRA {self.path} is a DoRA ({magnitudes[0]}), which cannot be fused; give a plain LoRA")
        self._require_updates(shapes, kinds)
        if importlib.util.find_spec("peft") is None:
            raise ValueError(f"LoRA {self.path} needs the package peft: pip install 'bitbrush[lora]'")

    def _require_updates(self, shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, str]) -> None:
        """Raises ValueError unless all tensors are pairs of factors of one rank, their biases, or alphas."""
        downs = [key for key in shapes if key.endswith(tuple(FACTORS))]
        if not downs:
            raise ValueError(f"LoRA {self.path} holds no updates of layers among {len(shapes)} tensors; give a LoRA")
        for key, shape in shapes.items():
            if not (_ending(key) or key.endswith(BESIDE)):
                raise ValueError(f"LoRA {self.path} holds {key}, which cannot be fused; give a plain LoRA")
            if not kinds[key].startswith(("F", "BF")):
                raise ValueError(f"LoRA {self.path} holds {key} in {kinds[key]}; give a LoRA in floating point")
            if len(shape) not in (2, 4) if _ending(key) else key.endswith("alpha") and math.prod(shape) != 1:
                raise ValueError(f"LoRA {self.path} holds {key} in the shape {shape}, which no such tensor has")
        for down in downs:
            up = _other_factor(down)
            if shapes[down][0] != shapes[up][1] or not shapes[down][0]:
                raise ValueError(f"LoRA {self.path} is damaged: {down} is {shapes[down]}, and {up} is {shapes[up]}")

    def facts(self) -> dict[str, Any]:
        """Returns the file's name, its SHA-256 and the scale, for the manifest."""
        return {"file": self.path.name, "sha256": file_digest(self.path), "scale": self.scale}


def fuse_lora(pipe: DiffusionPipeline, lora: Lora) -> int:
    """Adds the updates to the weights of ``pipe``; no adapter remains.

    Args:
        pipe: Pipeline to change in place.
        lora: File and scale.

    Returns:
        The number of changed layers.

    Raises:
        ValueError: The file cannot be loaded, a value is NaN or infinite, a layer has another shape, or the pipeline
            lacks some of its layers.
    """
    lora.require()
    if not hasattr(pipe, "load_lora_weights"):
        raise ValueError(f"{type(pipe).__name__} takes no LoRA, so {lora.path} cannot be fused")
    tensors = load_file(lora.path)
    if bad := [key for key, tensor in tensors.items() if not is_finite(tensor)]:
        raise ValueError(f"LoRA {lora.path} holds NaN or infinity in {bad[0]}")
    text = {key: tensor for key, tensor in tensors.items() if key.startswith(tuple(TEXT_ENCODERS))}
    rest = {key: tensor for key, tensor in tensors.items() if key not in text}
    updates = _text_updates(pipe, _unit_scaled(text), lora)
    if rest:
        _attach(pipe, lora, rest)
    layers, held = len(updates) + _adapted_layers(pipe), sum(_is_update(key, tensors) for key in tensors)
    if layers < max(held, 1):
        pipe.unload_lora_weights()
        raise ValueError(
            f"LoRA {lora.path} holds updates of {held} layers, of which {layers or 'none'} are in "
            f"{type(pipe).__name__}; it was made for another model"
        )
    if rest:
        pipe.fuse_lora(lora_scale=lora.scale, adapter_names=["fused"])
        pipe.unload_lora_weights()
    for layer, update in updates:
        layer.weight.data = (layer.weight.data + update.to(layer.weight.device)).to(layer.weight.dtype)
    return layers


def _attach(pipe: Any, lora: Lora, tensors: dict[str, Tensor]) -> None:
    """Attaches the tensors as the adapter "fused", or the file itself if it contains their ranks and alphas."""
    with safe_open(lora.path, framework="pt") as file:
        has_configuration = PEFT_METADATA in (file.metadata() or {})
    try:
        if has_configuration:
            pipe.load_lora_weights(str(lora.path.parent), weight_name=lora.path.name, adapter_name="fused")
        else:  # diffusers' conversion for transformers applies the alphas itself
            pipe.load_lora_weights(_unit_scaled(tensors) if hasattr(pipe, "unet") else tensors, adapter_name="fused")
    except (RuntimeError, ValueError, KeyError, AttributeError) as error:
        raise _misfit(pipe, lora, _first_lines(error)) from error


def _unit_scaled(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts ranks and alphas of each layer to factors of one common rank whose product is the update.

    diffusers 0.42 scales layers wrongly if a file's alphas differ, as those of convolutions and linear layers often do.
    """
    ranks = {key: len(tensor) for key, tensor in tensors.items() if key.endswith(tuple(FACTORS))}
    alphas = {key: key.removesuffix(_ending(key)) + "alpha" for key in ranks}
    scaled = {key: tensor for key, tensor in tensors.items() if key not in alphas.values()}
    for down, rank in ranks.items():
        up, zeros = _other_factor(down), max(ranks.values()) - rank
        scale = float(tensors[alphas[down]]) / rank if alphas[down] in tensors else 1.0
        scaled[down] = functional.pad(scaled[down], [0, 0] * (scaled[down].dim() - 1) + [0, zeros])
        scaled[up] = functional.pad(scaled[up] * scale, [0, 0] * (scaled[up].dim() - 2) + [0, zeros])
    return scaled


def _text_updates(pipe: Any, tensors: Mapping[str, Tensor], lora: Lora) -> list[tuple[nn.Linear, Tensor]]:
    """Computes the weight updates of text encoder layers, for files of kohya's programs.

    Such a file names a layer by its path with underscores for dots. diffusers guesses the dots, and needs the output
    projection among the layers to do so.
    """
    updates = []
    for down in (key for key in tensors if key.endswith(tuple(FACTORS))):
        prefix = next(prefix for prefix in TEXT_ENCODERS if down.startswith(prefix))
        name = down.removesuffix(_ending(down)).removeprefix(prefix).removesuffix(".")
        layer = _text_layer(getattr(pipe, TEXT_ENCODERS[prefix], None), name)
        if layer is not None:
            factors = tensors[_other_factor(down)].float(), tensors[down].float()
            shape = (factors[0].shape[0], *factors[1].shape[1:])
            if shape != layer.weight.shape:
                raise _misfit(pipe, lora, f"{prefix}{name} is {shape}, and here {tuple(layer.weight.shape)}")
            updates.append((layer, lora.scale * factors[0] @ factors[1]))
    return updates


def _text_layer(encoder: nn.Module | None, path: str) -> nn.Linear | None:
    """Finds the layer of a path with underscores.

    CLIP's layers are below ``text_model`` in kohya's files, and in most versions of transformers.
    """
    modules = encoder.named_modules() if encoder is not None else ()
    linear = {name.replace(".", "_"): module for name, module in modules if isinstance(module, nn.Linear)}
    return linear.get(path) or linear.get(path.removeprefix("text_model_"))


def _is_update(key: str, tensors: Mapping[str, Tensor]) -> bool:
    """Tells whether a tensor is the first factor of an update that changes something."""
    return key.endswith(tuple(FACTORS)) and bool(tensors[_other_factor(key)].any())


def _adapted_layers(pipe: DiffusionPipeline) -> int:
    """Counts layers with an update; peft also adapts layers of similar names, by zeros."""
    networks = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    ups = [getattr(module, "lora_B", {}) for network in networks for module in network.modules()]
    return sum(bool(up["fused"].weight.any()) for up in ups if "fused" in up)


def _other_factor(key: str) -> str:
    """Returns the name of the other factor of the pair that contains ``key``."""
    return key.removesuffix(_ending(key)) + PAIRS[_ending(key)]


def _ending(key: str) -> str:
    """Returns the suffix that identifies a factor by its name; empty for another tensor."""
    return next((ending for ending in PAIRS if key.endswith(ending)), "")


def _misfit(pipe: DiffusionPipeline, lora: Lora, reason: str) -> ValueError:
    return ValueError(
        f"LoRA {lora.path} does not fit {type(pipe).__name__}; it was made for another architecture: {reason}"
    )


def _first_lines(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
