"""Threads that share a denoiser on a GPU, and copies of one: the buffers that kernels read are the device's."""

import copy
import pickle
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from bitbrush.network.first_token import FirstToken
from bitbrush.runtime.cuda.engine import Replay
from bitbrush.runtime.cuda.runtime import CudaRuntime
from tests.runtime.cuda.test_runtime import TIMESTEPS, Answering, Recorder, all_layers, given, quantized, small_unet

THREADS = 8


@pytest.fixture
def _often_interrupted() -> Iterator[None]:
    """Threads change after every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_often_interrupted")
@pytest.mark.parametrize("recorded", [False, True])
@torch.no_grad()
def test_eight_threads_get_what_each_gets_alone(device: torch.device, *, recorded: bool) -> None:
    """Of other timesteps, numbers of samples and types, and other kinds of calls; by recorded graphs, too."""
    denoiser = Answering()
    own = [quantized("layer", denoiser.layer, 8, (8, 10, 16))]
    CudaRuntime(device, torch.float32, record=Recorder() if recorded else None).lower(denoiser, own)

    def run(seed: int) -> list[Tensor]:
        dtype = (torch.float32, torch.float16)[seed % 2]
        x = (given(2 + seed % 3, 12) + seed).to(dtype)
        times = [torch.tensor(TIMESTEPS[(seed + i) % 3]) for i in range(4)]
        with torch.no_grad():
            return [denoiser(x, t, doubled=seed % 4 == 0)["y"] for t in times]

    alone = [run(seed) for seed in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(run, range(THREADS)))
    for expected, answers in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(answers, expected, strict=True))
        assert answers[0].dtype == expected[0].dtype


@torch.no_grad()
def test_a_copy_answers_alike_and_is_independent(device: torch.device) -> None:
    """Whatever becomes of the original's tensors. What is joined stays joined."""
    unet = small_unet()
    unet.conv_out = nn.Conv2d(4, 4, 3, padding="same")  # is emulated
    CudaRuntime(device, torch.float32).lower(unet, all_layers(unet, (8, 10, 16)))
    x, text = given(1, 4, 2, 2), given(1, 3, 6)

    def answers(denoiser: UNet2DConditionModel) -> list[Tensor]:
        return [denoiser(x, torch.tensor(t), text).sample for t in TIMESTEPS[:2]]

    expected, copied = answers(unet), copy.deepcopy(unet)
    for parameter in unet.parameters():
        parameter.data.fill_(1)
    assert all(torch.equal(a, b) for a, b in zip(answers(copied), expected, strict=True))
    attention = copied.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    places = {one.weights.data.untyped_storage().data_ptr() for one in (attention.to_q, attention.to_k, attention.to_v)}
    assert len(places) == 1
    assert {one.integer_weight.untyped_storage().data_ptr() for one in (attention.to_q, attention.to_k)} == places


@torch.no_grad()
def test_a_copy_records_graphs_of_its_own(device: torch.device) -> None:
    denoiser, recorded = Answering(), Recorder()

    def record(run: Callable[[], Any]) -> Replay:  # a function is not copied, and counts for both
        return recorded(run)

    CudaRuntime(device, torch.float32, record=record).lower(denoiser, [quantized("layer", denoiser.layer, 8, (8, 10))])
    expected = [denoiser(given(2, 12), torch.tensor(900.0))["y"] for _ in range(3)][-1]
    assert recorded.recorded == 1
    copied = copy.deepcopy(denoiser)
    for _ in range(3):
        assert torch.equal(copied(given(2, 12), torch.tensor(900.0))["y"], expected)
        denoiser(given(2, 12) + 1, torch.tensor(500.0))
    assert recorded.recorded == 2


def test_weights_in_a_layout_of_kernels_are_not_pickled(device: torch.device) -> None:
    denoiser = Answering()
    CudaRuntime(device, torch.float32).lower(denoiser, [quantized("layer", denoiser.layer, 8, (8,))])
    with pytest.raises(TypeError, match=r"not pickled; .*: bitbrush\.load\(DIRECTORY\)"):
        pickle.dumps(denoiser.layer)


@pytest.mark.parametrize("nibbles", [False, True])
def test_layers_show_their_weights(device: torch.device, *, nibbles: bool) -> None:
    full = Answering()
    denoiser = copy.deepcopy(full)
    own = quantized("layer", denoiser.layer, 4, (8,))
    CudaRuntime(device, torch.float32, nibbles).lower(denoiser, [own])
    layer = denoiser.layer
    assert next(layer.parameters()).is_floating_point()
    assert layer.integer_weight.numel() == 144 // (1 + nibbles)
    listed = sum(parameter.numel() for parameter in layer.parameters())
    assert listed + layer.unlisted_parameters == sum(parameter.numel() for parameter in full.layer.parameters())
    assert not any(tensor.is_meta for tensor in denoiser.state_dict().values())


@pytest.mark.usefixtures("_often_interrupted")
@torch.no_grad()
def test_threads_have_first_tokens_of_their_own(device: torch.device) -> None:
    layer = nn.Linear(12, 5)
    own = quantized("layer", layer, 8, (8,))

    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
            return self.layer(sample)  # type: ignore[no-any-return]

    denoiser, x = Reading(), given(2, 4, 12)
    own = type(own)(own.name, own.weight, own.bias, own.activations, FirstToken(x[0, 0], torch.arange(5.0)))
    CudaRuntime(device, torch.float32).lower(denoiser, [own])

    def run(seed: int) -> Tensor:
        with torch.no_grad():
            return torch.stack([denoiser(x if seed % 2 else x.flip(0), TIMESTEPS[0]) for _ in range(3)])

    alone = [run(seed) for seed in range(THREADS)]
    assert not torch.equal(alone[0], alone[1])
    with ThreadPoolExecutor(THREADS) as pool:
        assert all(torch.equal(a, b) for a, b in zip(pool.map(run, range(THREADS)), alone, strict=True))
