"""Measurement of single layers in integers beside floating point, to tell in seconds what this machine gains."""

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from bitbrush.network.layers import QuantizedLayer
from bitbrush.numerics.affine import QParams
from bitbrush.numerics.limits import WeightRange
from bitbrush.numerics.weights import round_to_nearest, weight_qparams
from bitbrush.runtime.choose import Choice
from bitbrush.timeline.schedule import ActivationSchedule

SECONDS = 5.0
"""Time of the measurement of all layers, without warm-up."""
INTEGERS = "integers"
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_RANGE = 4.0
_TIMESTEP = torch.tensor(1.0)


@dataclass(frozen=True)
class LayerSpeed:
    """Median milliseconds of a layer, by the way it is computed: INTEGERS and the names in FLOATS."""

    layer: str
    milliseconds: Mapping[str, float]

    def faster_than(self, name: str) -> float:
        """Returns how many times as fast the integers are as ``name``."""
        return self.milliseconds[name] / self.milliseconds[INTEGERS]


class _OneLayer(nn.Module):
    """Denoiser of a single layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, sample: Tensor, timestep: Tensor) -> tuple[Tensor]:
        return (self.layer(sample),)


def layers() -> dict[str, tuple[nn.Module, Tensor]]:
    """Returns a linear layer and a convolution of Stable Diffusion's sizes, each with an input of two images."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 1024, 640, generator=generator)
    pixels = torch.randn(2, 640, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
    return {
        "linear, 2,048 tokens, 640 to 2,560": (nn.Linear(640, 2560), tokens),
        "convolution 3x3, 32x32, 640 channels": (nn.Conv2d(640, 640, 3, padding=1), pixels),
    }


@torch.no_grad()
def measure_layers(choice: Choice, seconds: float) -> tuple[LayerSpeed, ...]:
    """Times the layers in integers on the selected runtime and in floating point, in turns.

    Args:
        choice: Runtime that computes the integers, with its device.
        seconds: Time for all layers.

    Returns:
        Medians by layer.
    """
    measured = layers()
    share = seconds / len(measured)
    return tuple(
        LayerSpeed(name, _medians(_ways(layer, x, choice), share, choice.device))
        for name, (layer, x) in measured.items()
    )


def _ways(layer: nn.Module, x: Tensor, choice: Choice) -> dict[str, Callable[[], object]]:
    ways: dict[str, Callable[[], object]] = {}
    for name, dtype in FLOATS.items():
        floating = copy.deepcopy(layer).to(choice.device, dtype)
        floating.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        ways[name] = partial(floating, x.to(choice.device, dtype))
    denoiser = _OneLayer(copy.deepcopy(layer))
    choice.runtime.lower(denoiser, [_quantized(layer)])
    x = x.to(choice.device, choice.runtime.dtype)
    ways[INTEGERS] = partial(denoiser, x, _TIMESTEP)
    return ways


def _quantized(layer: nn.Module) -> QuantizedLayer:
    weight = layer.get_parameter("weight").detach()
    rounded = round_to_nearest(weight, weight_qparams(weight, 8, WeightRange.MIN_MAX))
    schedule = ActivationSchedule.static(QParams.from_range(-_RANGE, _RANGE, 8))
    return QuantizedLayer("layer", rounded, layer.get_parameter("bias").detach(), schedule)


def _medians(ways: Mapping[str, Callable[[], object]], seconds: float, device: torch.device) -> dict[str, float]:
    """Runs all ways in turns, at least three times after a warm-up, until the time is over; milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in ways.values():
        run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < 3:
        for name, run in ways.items():
            _wait(device)
            start = time.perf_counter()
            run()
            _wait(device)
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
