"""Threads that share a denoiser get what they would get alone, on every runtime."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from bitbrush.network.first_token import FirstToken
from bitbrush.network.layers import QuantizedLayer
from bitbrush.numerics.affine import QParams
from bitbrush.numerics.limits import WeightRange
from bitbrush.numerics.weights import round_to_nearest, weight_qparams
from bitbrush.runtime.interface import Runtime
from bitbrush.runtime.onednn.runtime import OneDnnRuntime
from bitbrush.runtime.onednn.weights import Memory
from bitbrush.runtime.reference import ReferenceRuntime
from bitbrush.runtime.tools import best_tools, torch_tools
from bitbrush.timeline.schedule import Activations, ActivationSchedule, DynamicRanges

THREADS = 8
TIMESTEPS = tuple(float(t) for t in range(990, 0, -90))
START = torch.linspace(-2, 2, 16)
"""The known first token of every text."""

RUNTIMES: dict[str, Callable[[], Runtime]] = {
    "reference": ReferenceRuntime,
    "onednn float32": lambda: OneDnnRuntime(best_tools(), torch.float32),
    "onednn bfloat16": lambda: OneDnnRuntime(best_tools(), torch.bfloat16, Memory.LOW),
    "onednn torch": lambda: OneDnnRuntime(torch_tools("asked for"), torch.float32),
}


@pytest.fixture(params=list(RUNTIMES))
def runtime(request: pytest.FixtureRequest) -> Runtime:
    if "onednn" in request.param:
        request.getfixturevalue("exact_products")
    return RUNTIMES[request.param]()


def quantized(name: str, layer: nn.Conv2d | nn.Linear) -> QuantizedLayer:
    """Ranges that differ much from step to step; some layers find theirs, some know a first token."""
    weight = round_to_nearest(layer.weight.data, weight_qparams(layer.weight.data, 4, WeightRange.MIN_MAX))
    all_qparams = (QParams.from_range(-1 - i / 2, 2 + i, 8 + i % 2) for i in range(len(TIMESTEPS)))
    activations: Activations = ActivationSchedule(TIMESTEPS, tuple(all_qparams))
    if name.endswith("to_out.0"):
        activations = DynamicRanges(8)
    first = FirstToken(START, torch.ones(len(layer.weight))) if name.endswith("attn2.to_v") else None
    return QuantizedLayer(name, weight, None if layer.bias is None else layer.bias.data.clone(), activations, first)


def lower(denoiser: nn.Module, runtime: Runtime) -> nn.Module:
    layers = {name: m for name, m in denoiser.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    runtime.lower(denoiser, [quantized(name, layer) for name, layer in layers.items()])
    return denoiser.requires_grad_(False)


@dataclass(frozen=True)
class Request:
    """A generation's denoiser calls: how many, of how many samples, in which type, and of which text."""

    steps: int
    batch: int
    dtype: torch.dtype
    words: int

    def run(self, denoiser: nn.Module) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.words)
        x = torch.randn(self.batch, 4, 8, 8, generator=generator).to(self.dtype)
        text = torch.randn(self.batch, self.words, 16, generator=generator)
        text[:, 0] = START if self.words % 2 else 0.0
        answers = []
        for timestep in torch.linspace(999, 1, self.steps).long():
            answers.append(denoiser(x, timestep, text.to(self.dtype), return_dict=False)[0])
            x = x - answers[-1] / self.steps
        return answers


DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
REQUESTS = [Request(3 + i, 1 + i % 3, DTYPES[i % 4], 3 + i) for i in range(THREADS)]


@torch.no_grad()
def test_eight_threads_get_what_each_gets_alone(tiny_pipe: StableDiffusionPipeline, runtime: Runtime) -> None:
    """Of other numbers of steps and samples, other types and texts."""
    unet = lower(tiny_pipe.unet, runtime)
    alone = [request.run(unet) for request in REQUESTS]
    assert not any(torch.equal(a[0], b[0]) for a, b in pairwise(alone) if a[0].shape == b[0].shape)
    unet.mid_block.register_forward_pre_hook(meeting_point(THREADS, calls=REQUESTS[0].steps))
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(torch.no_grad()(lambda request: request.run(unet)), REQUESTS))
    for expected, answers in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(answers, expected, strict=True))
        assert answers[0].dtype == expected[0].dtype


def meeting_point(threads: int, *, calls: int) -> Callable[..., None]:
    """A hook: in the middle of their first calls, all threads wait for each other, so that none runs by itself."""
    barrier, own = threading.Barrier(threads, timeout=60), threading.local()

    def meet(*_: object) -> None:
        own.calls = getattr(own, "calls", 0) + 1
        if own.calls <= calls:
            barrier.wait()

    return meet
