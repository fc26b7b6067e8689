"""Quantization of a VAE's decoder: 8-bit weights, and 8-bit inputs with one range each, calibrated on final latents.

The latents are those that the quantized denoiser gives for some calibration prompts. Every image of a pipeline passes
the decoder once, so its layers have one step.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bitbrush.network.inputs import InputObserver
from bitbrush.network.layers import (
    HIGH_PRECISION_ACTIVATION_BITS,
    HIGH_PRECISION_WEIGHT_BITS,
    LayerSpec,
    QuantizedLayer,
)
from bitbrush.network.lazy_weights import device_of, weight_shape
from bitbrush.network.other_networks import QuantizedNetwork, integer_part, require_multipliable
from bitbrush.numerics.affine import QParams
from bitbrush.numerics.limits import RangeEstimator, WeightRange
from bitbrush.numerics.ranges import find_qparams
from bitbrush.numerics.weights import round_to_nearest, weight_qparams
from bitbrush.session.offload import CPU
from bitbrush.session.progress import Progress
from bitbrush.timeline.schedule import ActivationSchedule

INPUT_BITS = 8
MARGIN = 4.0
"""Width of the range of 16-bit inputs over that of the observed ones; clipped latents show in the image."""
LARGEST_HALF = torch.finfo(torch.float16).max


def decoder_specs(name: str, vae: nn.Module) -> tuple[LayerSpec, ...]:
    """Lists the Conv2d and Linear layers of a VAE's decoder; the first and the last get 16-bit inputs.

    Raises:
        ValueError: The decoder has layers that no runtime multiplies in integers, or none to quantize.
    """
    require_multipliable(name, vae)
    prefix, decoder = integer_part(vae)
    layers = {key: module for key, module in decoder.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    if not layers:
        raise ValueError(
            f"networks has vae, but the decoder of {name} ({type(vae).__name__}) has no Conv2d or Linear layer to "
            "quantize; leave vae out of networks"
        )
    ends = (next(iter(layers)), next(reversed(layers)))
    return tuple(
        LayerSpec(
            f"{prefix}.{key}",
            "conv" if isinstance(layer, nn.Conv2d) else "linear",
            weight_shape(layer),
            HIGH_PRECISION_WEIGHT_BITS,
            high_precision=key in ends,
        )
        for key, layer in layers.items()
    )


@torch.no_grad()
def quantize_decoder(name: str, vae: Any, latents: Sequence[Tensor], progress: Progress) -> QuantizedNetwork:
    """Quantizes the decoder of a VAE, which is unchanged.

    Args:
        name: Name of the VAE in its pipeline.
        vae: Full-precision VAE.
        latents: Inputs of its decoder, each for one image.
        progress: Callback that receives progress reports.

    Returns:
        Integers with names in the VAE.

    Raises:
        NonFiniteError: The input of a layer is NaN or infinite; the message names the layer.
    """
    specs = decoder_specs(name, vae)
    observer, names = InputObserver(), [spec.name for spec in specs]
    with progress(f"observing {name}", len(latents)) as advance, observer.watching(vae, names):
        for latent in latents:
            integer_part(vae)[1](latent.to(device_of(vae)))
            advance()
    _warn_of_overflow(name, observer)
    layers = []
    for spec, qparams in zip(specs, _ranges(specs, observer), strict=True):
        module: Any = vae.get_submodule(spec.name)
        weight = module.weight.detach().float()
        rounded = round_to_nearest(weight, weight_qparams(weight, spec.weight_bits, WeightRange.MSE)).to(CPU)
        bias = None if module.bias is None else module.bias.detach().float().cpu().clone()
        layers.append(QuantizedLayer(spec.name, rounded, bias, ActivationSchedule.static(qparams)))
    return QuantizedNetwork(specs, tuple(layers))


def _ranges(specs: Sequence[LayerSpec], observer: InputObserver) -> list[QParams]:
    """Computes one range per layer; 16 bits leave room for latents beyond those that were observed."""
    histograms = [observer.histogram(spec.name) for spec in specs]
    narrow = find_qparams(RangeEstimator.L4, histograms, [INPUT_BITS] * len(specs))
    wide = [
        QParams.from_range(MARGIN * one.low, MARGIN * one.high, HIGH_PRECISION_ACTIVATION_BITS) for one in histograms
    ]
    return [wide[place] if spec.high_precision else narrow[place] for place, spec in enumerate(specs)]


def _warn_of_overflow(name: str, observer: InputObserver) -> None:
    """Warns of a VAE that works in float32 alone, as SDXL's does, whose users often load it in half precision."""
    largest = {key: max(-one.low, one.high) for key, one in observer.histograms.items()}
    key = max(largest, key=lambda layer: largest[layer])
    if largest[key] > LARGEST_HALF:
        warnings.warn(
            f"activations of {name} reach {largest[key]:.3g} at layer {key}, beyond float16's {LARGEST_HALF:.0f}: the "
            "artifact computes them right, but in float16 this VAE gives black images; load it in float32 or bfloat16",
            stacklevel=2,
        )
