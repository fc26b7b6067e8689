"""LoRAs with random factors, for the tests of adapters on lowered denoisers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def everything(_: str) -> bool:
    return True


def attention(name: str) -> bool:
    return name.endswith(ATTENTION)


def random_lora(
    network: nn.Module,
    *,
    strength: float,
    rank: int = 3,
    seed: int = 0,
    prefix: str = "unet",
    layers: Callable[[str], bool] = everything,
) -> dict[str, Tensor]:
    """Factors for the chosen layers; the update's norm is ``strength`` times that of the layer's weight."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and layers(name):
            weight = layer.weight.detach().float()
            down = torch.randn(rank, *weight.shape[1:], generator=generator)
            up = torch.randn(len(weight), rank, *(1,) * (weight.dim() - 2), generator=generator)
            size = (up.flatten(1) @ down.flatten(1)).norm()
            tensors[f"{prefix}.{name}.lora_A.weight"] = down
            tensors[f"{prefix}.{name}.lora_B.weight"] = up * strength * weight.norm() / size
    return tensors


def scaled_sum(first: dict[str, Tensor], a: float, second: dict[str, Tensor], b: float) -> dict[str, Tensor]:
    """One LoRA for ``a`` times the first and ``b`` times the second, of the same layers."""
    tensors = {}
    for key, tensor in first.items():
        other = second[key]
        parts = (tensor, other) if "lora_A" in key else (a * tensor, b * other)
        tensors[key] = torch.cat(parts, 0 if "lora_A" in key else 1)
    return tensors


def as_kohya(tensors: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The same LoRA in the layout of kohya's programs, convolutions included (LoCon)."""
    names = {"unet": "lora_unet", "text_encoder": "lora_te"}
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        network, _, rest = key.partition(".")
        layer, factor = rest.split(".lora_")
        stem = f"{names[network]}_{layer.replace('.', '_')}"
        rank = len(tensor) if factor.startswith("A") else tensor.shape[1]
        scale = 1.0 if factor.startswith("A") else rank / alpha
        found[f"{stem}.lora_{'down' if factor.startswith('A') else 'up'}.weight"] = tensor * scale
        found[f"{stem}.alpha"] = torch.tensor(alpha)
    return found


def as_diffusers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same LoRA in the layout of diffusers before peft."""
    names = {"unet": "lora", "text_encoder": "lora_linear_layer"}
    found = {}
    for key, tensor in tensors.items():
        own = names[key.partition(".")[0]]
        found[key.replace("lora_A", f"{own}.down").replace("lora_B", f"{own}.up")] = tensor
    return found


def attach(unet: Any, tensors: dict[str, Tensor], name: str = "style", **options: Any) -> None:
    unet.load_lora_adapter(dict(tensors), prefix="unet", adapter_name=name, **options)
