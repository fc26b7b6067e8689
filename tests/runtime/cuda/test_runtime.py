"""The GPU runtime against the reference: layers of all kinds and bits, whole denoisers, graphs and compilation."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from bitbrush.network.first_token import FirstToken
from bitbrush.network.layers import QuantizedLayer
from bitbrush.network.skip_inputs import with_split_skips
from bitbrush.network.unet import UNET
from bitbrush.numerics.affine import QParams
from bitbrush.numerics.limits import WeightRange
from bitbrush.numerics.weights import round_to_nearest, weight_qparams
from bitbrush.runtime.cuda.engine import GraphWarning, Replay
from bitbrush.runtime.cuda.joined import AtOnce
from bitbrush.runtime.cuda.runtime import CudaRuntime
from bitbrush.runtime.fused_forward import FusedForward
from bitbrush.runtime.reference import ReferenceRuntime
from bitbrush.timeline.schedule import ActivationSchedule
from tests.runtime.conftest import Alone, assert_same_sums

TIMESTEPS = (900.0, 500.0, 1.0)
LAYERS = {
    "conv": (nn.Conv2d(16, 24, 3, padding=1), (2, 16, 5, 7)),
    "stride": (nn.Conv2d(9, 5, 3, stride=2, padding=(1, 2)), (1, 9, 7, 6)),
    "groups": (nn.Conv2d(6, 9, 3, padding=1, groups=3), (1, 6, 5, 6)),
    "pointwise": (nn.Conv2d(7, 3, 1, bias=False), (2, 7, 4, 5)),
    "linear": (nn.Linear(33, 11), (2, 5, 33)),
    "rows": (nn.Linear(12, 70), (3, 12)),
}


def quantized(name: str, layer: nn.Module, weight_bits: int, bits: tuple[int, ...]) -> QuantizedLayer:
    """A grid a step, each of its own scale, zero point and bits."""
    weight = round_to_nearest(layer.weight.data, weight_qparams(layer.weight.data, weight_bits, WeightRange.MIN_MAX))
    all_qparams = tuple(QParams.from_range(-2.0 - step, 3.0 + step**2, b) for step, b in enumerate(bits))
    schedule = ActivationSchedule(TIMESTEPS[: len(bits)], all_qparams)
    return QuantizedLayer(name, weight, None if layer.bias is None else layer.bias.data.clone(), schedule)


def all_layers(unet: nn.Module, bits: tuple[int, ...]) -> list[QuantizedLayer]:
    found = ((name, m) for name, m in unet.named_modules() if isinstance(m, nn.Conv2d | nn.Linear))
    return [quantized(name, module, 8, bits) for name, module in found]


def given(*shape: int) -> Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("weight_bits", "nibbles"), [(8, False), (4, False), (3, True)])
@pytest.mark.parametrize("kind", list(LAYERS))
@torch.no_grad()
def test_layers_equal_the_reference_at_every_step(
    kind: str, weight_bits: int, nibbles: bool, device: torch.device
) -> None:
    """Steps of one byte, of two bytes in 32 bits, and of two bytes that need 64."""
    layer, shape = LAYERS[kind]
    x = given(*shape)
    own = quantized("layer", layer, weight_bits, (8, 10, 16))
    exact, ours = Alone(layer), Alone(layer)
    ReferenceRuntime().lower(exact, [own])
    (execution,) = CudaRuntime(device, torch.float32, nibbles).lower(ours, [own])
    assert execution.fallback is None
    for timestep in TIMESTEPS:
        expected = exact(x, timestep)
        y = ours(x, timestep)
        assert y.shape == expected.shape
        assert_same_sums(y, expected, own.weight.w_q)


@torch.no_grad()
def test_a_known_first_token_is_answered_and_the_rest_computed(device: torch.device) -> None:
    layer, shape = LAYERS["linear"]
    x, own = given(*shape), quantized("layer", layer, 8, (8,))
    x[:, 0] = 50.0
    known = replace(own, first=FirstToken(x[0, 0], torch.arange(11.0)))
    outputs = []
    for one in (own, known):
        denoiser = Alone(layer)
        CudaRuntime(device, torch.float32).lower(denoiser, [one])
        outputs.append(denoiser(x, TIMESTEPS[0]))
    assert torch.equal(outputs[1][:, 0], torch.arange(11.0).expand(2, 11))
    assert torch.equal(outputs[1][:, 1:], outputs[0][:, 1:])


def test_nibbles_take_half_a_byte(device: torch.device) -> None:
    layer = nn.Linear(64, 8)
    own = quantized("layer", layer, 4, (8,))
    sizes = []
    for nibbles in (False, True):
        denoiser = Alone(layer)
        CudaRuntime(device, torch.float32, nibbles).lower(denoiser, [own])
        sizes.append(denoiser.layer.weights.data.nbytes)
    assert sizes == [64 * 8, 64 * 8 // 2]


@torch.no_grad()
def test_a_layer_that_does_not_fit_is_named_and_still_right(device: torch.device) -> None:
    layer = nn.Conv2d(4, 6, 3, padding="same")
    own = quantized("layer", layer, 4, (8, 10))
    exact, ours = Alone(layer), Alone(layer)
    ReferenceRuntime().lower(exact, [own])
    (execution,) = CudaRuntime(device, torch.float32).lower(ours, [own])
    assert execution.fallback is not None
    assert "padding 'same'" in execution.fallback
    for timestep in (900.0, 500.0):
        x = given(1, 4, 5, 5)
        assert_same_sums(ours(x, timestep), exact(x, timestep), own.weight.w_q)


def small_unet(text_width: int = 6) -> UNet2DConditionModel:
    """A denoiser with a block down and one up, of which each kernel is run a few times alone."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(4,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        mid_block_type=None,
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=2,
        cross_attention_dim=text_width,
    ).requires_grad_(False)


def assert_close(exact: nn.Module, device: torch.device, text: Tensor) -> int:
    """Compares a denoiser with the reference's on a relaxed step; returns the number of its layers."""
    ours = copy.deepcopy(exact)
    layers = all_layers(exact, (8, 10, 16))
    ReferenceRuntime().lower(exact, layers)
    executions = CudaRuntime(device, torch.float32).lower(ours, layers)
    assert len(executions) == len(layers)
    assert not [one for one in executions if one.fallback]
    assert all(isinstance(block.forward, FusedForward) for block in ours.up_blocks[0].resnets)
    x = given(2, 4, 4, 4)
    expected, y = exact(x, 500, text).sample, ours(x, torch.tensor(500), text).sample
    assert (y - expected).norm() <= 0.02 * expected.norm()
    return len(layers)


@torch.no_grad()
def test_a_whole_denoiser_is_close(tiny_pipe: StableDiffusionPipeline, device: torch.device) -> None:
    """With all that is fused."""
    assert assert_close(tiny_pipe.unet, device, given(2, 7, 16)) > 30


@torch.no_grad()
def test_a_denoiser_whose_skips_are_split_is_close(device: torch.device) -> None:
    unet = small_unet()
    split = with_split_skips(unet, UNET)
    assert assert_close(split, device, given(2, 7, 6)) > len(all_layers(unet, (8, 10, 16)))


class Reading(nn.Module):
    """Two layers that read a text, two that read a time, and one that does both."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(12, 5, bias=False), nn.Linear(12, 7), nn.Linear(12, 3, bias=False)])

    def forward(self, sample: Tensor, timestep: Tensor) -> list[Tensor]:
        return [read(sample) for read in getattr(self, "readings", self.layers)]


def read_at_once(
    denoiser: Reading, all_qparams: list[tuple[int, ...]], device: torch.device, first: FirstToken | None
) -> AtOnce:
    """Lowers the layers, each of its own activation bits, and puts them together."""
    names = [f"layers.{i}" for i in range(len(all_qparams))]
    layers = [
        quantized(name, denoiser.get_submodule(name), 8, bits) for name, bits in zip(names, all_qparams, strict=True)
    ]
    layers[-1] = replace(layers[-1], first=first)
    CudaRuntime(device, torch.float32).lower(denoiser, layers)
    group = AtOnce(lambda x: x)
    denoiser.readings = [group.add(denoiser.get_submodule(name)) for name in names]
    group.join()
    return group


@torch.no_grad()
def test_layers_of_one_input_are_computed_at_once_and_equal(device: torch.device) -> None:
    """Two share a grid and become one product, whose weights are theirs; the third has its own first token."""
    all_qparams: list[tuple[int, ...]] = [(8, 10), (8, 10), (8, 10)]
    x = given(2, 4, 12)
    alone, ours = Reading(), Reading()
    first = FirstToken(x[0, 0], torch.arange(3.0))
    read_at_once(alone, all_qparams, device, first)
    del alone.readings
    group = read_at_once(ours, all_qparams, device, first)
    ((joined, members),) = group._groups
    assert members == [0, 1]
    assert joined.weights.data.data_ptr() == ours.layers[0].weights.data.data_ptr()  # nothing is held twice
    for timestep in (900.0, 500.0):  # the same tensor: another step, and then other values
        for one, expected in zip(ours(x, timestep), alone(x, timestep), strict=True):
            assert torch.equal(one, expected)
        group.forget()
    x += 1
    for one, expected in zip(ours(x, 500.0), alone(x, 500.0), strict=True):
        assert torch.equal(one, expected)


@torch.no_grad()
def test_layers_of_other_grids_are_products_of_their_own(device: torch.device) -> None:
    alone, ours = Reading(), Reading()
    all_qparams: list[tuple[int, ...]] = [(8,), (6,), (8,)]
    read_at_once(alone, all_qparams, device, None)
    del alone.readings
    group = read_at_once(ours, all_qparams, device, None)
    assert [members for _, members in group._groups] == [[0, 2], [1]]
    for one, expected in zip(ours(given(2, 12), 900.0), alone(given(2, 12), 900.0), strict=True):
        assert torch.equal(one, expected)


@torch.no_grad()
def test_what_is_no_number_is_not_made_one(device: torch.device) -> None:
    denoiser = Answering()
    CudaRuntime(device, torch.float32).lower(denoiser, [quantized("layer", denoiser.layer, 8, (8,))])
    x = given(2, 12)
    assert denoiser(x, 1.0)["y"].isfinite().all()
    x[0, 0] = torch.nan
    assert denoiser(x, 1.0)["y"].isnan().all()


class Recorder:
    """Records as a CUDA graph does: the replay computes on the tensors it was recorded with, into the same places."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, run: Callable[[], Any]) -> Replay:
        self.recorded += 1
        output = run()

        def replay() -> Any:
            self.replayed += 1
            output["y"].copy_(run()["y"])
            return output

        return replay


class Answering(nn.Module):
    """A denoiser of one layer that answers with a dictionary, as diffusers does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(12, 12)

    def forward(self, sample: Tensor, timestep: Tensor, doubled: bool = False) -> dict[str, Tensor]:
        y = self.layer(sample)
        return {"y": 2 * y if doubled else y}


@torch.no_grad()
def test_graphs_give_every_call_its_own_answer(device: torch.device) -> None:
    own = [quantized("layer", Answering().layer, 8, (8, 10, 16))]
    record, plain, recorded = Recorder(), Answering(), Answering()
    CudaRuntime(device, torch.float32).lower(plain, own)
    CudaRuntime(device, torch.float32, record=record).lower(recorded, own)
    answers = []
    for index, timestep in enumerate((900, 500.0, torch.tensor(1.0), 900)):
        timestep = torch.as_tensor(timestep, dtype=torch.float32)
        x = given(2, 12) + index
        answers.append((plain(x, timestep)["y"], recorded(x, timestep)["y"]))
    for expected, y in answers:  # looked at in the end: a later replay must not have overwritten them
        assert torch.equal(y, expected)
    assert (record.recorded, record.replayed) == (1, 3)  # the first call shows that it runs
    twice = [recorded(given(2, 12), torch.tensor(1.0), doubled=True)["y"] for _ in range(3)]
    assert record.recorded == 2  # another kind of call
    assert torch.equal(twice[2], 2 * plain(given(2, 12), torch.tensor(1.0))["y"])


@torch.no_grad()
def test_what_cannot_be_recorded_runs_and_is_told(device: torch.device) -> None:
    def refuse(_: Callable[[], Any]) -> Replay:
        raise RuntimeError("operation not permitted when stream is capturing")

    denoiser = Answering()
    own = [quantized("layer", denoiser.layer, 8, (8,))]
    CudaRuntime(device, torch.float32, record=refuse).lower(denoiser, own)
    first = denoiser(given(2, 12), torch.tensor(1.0))["y"]
    with pytest.warns(GraphWarning, match="not permitted when stream is capturing"):
        assert torch.equal(denoiser(given(2, 12), torch.tensor(1.0))["y"], first)
    assert torch.equal(denoiser(given(2, 12), torch.tensor(1.0))["y"], first)


@torch.no_grad()
def test_no_step_is_compiled_anew(device: torch.device) -> None:
    """torch.compile takes a lowered denoiser as one graph, and that one for all steps, relaxed or not."""
    layer = nn.Conv2d(5, 7, 3, padding=1)
    denoiser = Alone(layer)
    CudaRuntime(device, torch.float32).lower(denoiser, [quantized("layer", layer, 8, (8, 10, 16))])
    graphs: list[Any] = []

    def backend(module: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(module)
        return module.forward

    compiled = torch.compile(denoiser, backend=backend, fullgraph=True)
    for timestep in TIMESTEPS:
        t = torch.tensor(timestep)
        assert torch.equal(compiled(given(1, 5, 4, 4), t), denoiser(given(1, 5, 4, 4), t))
    assert len(graphs) == 1


@torch.no_grad()
def test_a_whole_denoiser_is_compiled_as_one_graph(device: torch.device) -> None:
    """What layers of one input share within a call is part of it, and nothing of it is left for the next call."""
    unet = small_unet()
    CudaRuntime(device, torch.float32).lower(unet, all_layers(unet, (8, 10)))
    graphs: list[Any] = []

    def backend(module: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(module)
        return module.forward

    compiled = torch.compile(unet, backend=backend, fullgraph=True)
    x, text = given(1, 4, 4, 4), given(1, 3, 6)
    for timestep, words in ((900.0, text), (500.0, text), (500.0, text + 1)):
        t = torch.tensor(timestep)
        y = compiled(x, t, words, return_dict=False)[0]
        assert torch.equal(y, unet(x, t, words, return_dict=False)[0])
    assert len(graphs) == 1
