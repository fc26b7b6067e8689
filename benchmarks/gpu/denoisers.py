"""The denoisers that are timed: random weights made on the device, the same for every subject, and their integers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from cpu.models import SD15, SDXL, SEED, TEXT_TOKENS, TIMESTEPS
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from bitbrush.network.layers import HIGH_PRECISION_ACTIVATION_BITS, LayerSpec, QuantizedLayer, layer_specs
from bitbrush.network.unet import UNET
from bitbrush.numerics.affine import QParams
from bitbrush.numerics.limits import WeightRange
from bitbrush.numerics.weights import round_to_nearest, weight_qparams
from bitbrush.timeline.schedule import ActivationSchedule

PLAIN, RELAXED = float(TIMESTEPS[0]), float(TIMESTEPS[-1])
RELAXED_BITS = 10
_RELAXED_FROM = len(TIMESTEPS) * 4 // 5
_WIDENING = 0.4

TINY: dict[str, Any] = {
    "sample_size": 8,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "cross_attention_dim": 16,
}
"""For the dry run on a processor alone."""


@dataclass(frozen=True)
class Shape:
    """A denoiser: the configuration, and what it is called with beside latents."""

    config: dict[str, Any]
    text_width: int
    pooled_width: int | None = None


SHAPES = {"sd15": Shape(SD15, 768), "sdxl": Shape(SDXL, 2048, 1280), "tiny": Shape(TINY, 16)}


def make_denoiser(shape: Shape, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Makes a denoiser with torch's own initial values, in its final type, so that no wider copy leaves holes."""
    torch.manual_seed(SEED)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            denoiser: nn.Module = UNet2DConditionModel.from_config(shape.config)
    finally:
        torch.set_default_dtype(usual)
    return denoiser.eval().requires_grad_(False)


@dataclass(frozen=True)
class Case:
    """``batch`` latents of ``size`` x ``size``."""

    batch: int
    size: int

    @property
    def name(self) -> str:
        return f"batch {self.batch}, {self.size}x{self.size}"

    def call(
        self, denoiser: Callable[..., Any], shape: Shape, dtype: torch.dtype, device: torch.device
    ) -> Callable[[float], Tensor]:
        """From a timestep to the prediction; inputs are the same for every subject, and already on the device."""
        generator = torch.Generator().manual_seed(SEED)

        def draw(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=generator).to(device, dtype)

        latents = draw(self.batch, shape.config.get("in_channels", 4), self.size, self.size)
        given: dict[str, Any] = {"encoder_hidden_states": draw(self.batch, TEXT_TOKENS, shape.text_width)}
        if shape.pooled_width is not None:
            sizes = torch.tensor([[8.0 * self.size] * 2 + [0.0] * 2 + [8.0 * self.size] * 2] * self.batch)
            pooled = draw(self.batch, shape.pooled_width)
            given["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes.to(device)}
        latents = latents.contiguous(memory_format=torch.channels_last)
        steps = {t: torch.tensor(t, device=device) for t in (PLAIN, RELAXED)}

        def run(timestep: float) -> Tensor:
            prediction: Tensor = denoiser(latents, steps[timestep], return_dict=False, **given)[0]
            return prediction

        return run


def quantized_layers(denoiser: nn.Module, call: Callable[[float], Tensor], weight_bits: int) -> list[QuantizedLayer]:
    """Nearest, minimum to maximum; activations in the range that one call needs, wider from step to step.

    The last fifth of the steps has ten bits, the layers next to the latents are as always.
    """
    specs = layer_specs(denoiser, UNET, weight_bits=weight_bits)
    ranges = _ranges(denoiser, specs, call)
    return [_quantized(denoiser.get_submodule(spec.name), spec, *ranges[spec.name]) for spec in specs]


def _ranges(
    denoiser: nn.Module, specs: tuple[LayerSpec, ...], call: Callable[[float], Tensor]
) -> dict[str, tuple[float, float]]:
    ranges: dict[str, tuple[float, float]] = {}

    def watch(name: str) -> Any:
        return lambda _, args: ranges.__setitem__(name, (float(args[0].min()), float(args[0].max())))

    handles = [denoiser.get_submodule(spec.name).register_forward_pre_hook(watch(spec.name)) for spec in specs]
    call(PLAIN)
    for handle in handles:
        handle.remove()
    return ranges


def _quantized(layer: nn.Module, spec: LayerSpec, low: float, high: float) -> QuantizedLayer:
    weight: Any = layer.weight
    rounded = round_to_nearest(weight, weight_qparams(weight, spec.weight_bits, WeightRange.MIN_MAX))
    bias: Any = layer.bias
    return QuantizedLayer(
        spec.name,
        rounded,
        None if bias is None else bias.clone(),
        ActivationSchedule.of(dict(activation_qparams(low, high, high_precision=spec.high_precision))),
    )


def activation_qparams(low: float, high: float, *, high_precision: bool) -> Iterator[tuple[float, QParams]]:
    """Yields quantization parameters by timestep; ``high_precision`` selects those of a layer next to the latents."""
    for step, timestep in enumerate(TIMESTEPS):
        bits = HIGH_PRECISION_ACTIVATION_BITS if high_precision else RELAXED_BITS if step >= _RELAXED_FROM else 8
        wider = 1 + _WIDENING * step / len(TIMESTEPS)
        yield float(timestep), QParams.from_range(low * wider, high * wider**2, bits)
