"""The oneDNN runtime against the reference: integers exactly, layers to float32's rounding, whole denoisers closely."""

import copy

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from bitbrush.network.layers import QuantizedLayer
from bitbrush.numerics.affine import QParams
from bitbrush.numerics.limits import WeightRange
from bitbrush.numerics.weights import (
    QuantizedWeight,
    WeightQParams,
    round_to_nearest,
    weight_qparams,
)
from bitbrush.runtime.forward import compute_in
from bitbrush.runtime.nibbles import Arrangement, from_nibbles, to_nibbles
from bitbrush.runtime.onednn.runtime import OneDnnRuntime
from bitbrush.runtime.onednn.weights import Memory
from bitbrush.runtime.reference import ReferenceRuntime
from bitbrush.runtime.tools import Tools, best_tools, torch_tools
from bitbrush.timeline.schedule import ActivationSchedule
from tests.runtime.conftest import Alone, assert_same_sums

LAYERS = {
    "conv": (nn.Conv2d(16, 24, 3, padding=1), (2, 16, 9, 7)),
    "stride": (nn.Conv2d(8, 5, 3, stride=2, padding=1), (1, 8, 7, 7)),
    "groups": (nn.Conv2d(6, 9, 3, padding=1, groups=3), (2, 6, 5, 6)),
    "pointwise": (nn.Conv2d(7, 3, 1), (2, 7, 4, 5)),
    "linear": (nn.Linear(13, 11), (2, 5, 13)),
}


pytestmark = pytest.mark.usefixtures("exact_products")


def quantized(name: str, layer: nn.Conv2d | nn.Linear, weight_bits: int, qparams: QParams) -> QuantizedLayer:
    weight = round_to_nearest(layer.weight.data, weight_qparams(layer.weight.data, weight_bits, WeightRange.MIN_MAX))
    bias = None if layer.bias is None else layer.bias.data.clone()
    return QuantizedLayer(name, weight, bias, ActivationSchedule.static(qparams))


@pytest.fixture(scope="module", params=["native", "torch"])
def tools(request: pytest.FixtureRequest) -> Tools:
    if request.param == "torch":
        return torch_tools("asked for")
    found = best_tools()
    return pytest.skip(found.shortfall) if found.shortfall else found


@pytest.mark.parametrize("memory", list(Memory))
@pytest.mark.parametrize("activation_bits", [4, 8, 9, 10, 16])
@pytest.mark.parametrize("weight_bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("kind", list(LAYERS))
@torch.no_grad()
def test_layers_equal_the_reference(
    kind: str, weight_bits: int, activation_bits: int, memory: Memory, tools: Tools
) -> None:
    layer, shape = LAYERS[kind]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    own = quantized("layer", layer, weight_bits, QParams.from_range(-1.5, 2.5, activation_bits))
    exact, ours = Alone(layer), Alone(layer)
    ReferenceRuntime().lower(exact, [own])
    (execution,) = OneDnnRuntime(tools, torch.float32, memory).lower(ours, [own])
    assert execution.fallback is None
    expected, y = exact(x, 1.0), ours(x, 1.0)
    assert y.shape == expected.shape
    assert_same_sums(y, expected, own.weight.w_q)


@pytest.mark.parametrize("kind", list(LAYERS))
@torch.no_grad()
def test_sums_of_extreme_integers_are_exact(kind: str, tools: Tools) -> None:
    layer, shape = LAYERS[kind]
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 2, shape, generator=generator) * 255.0
    w_q = (torch.randint(0, 2, layer.weight.shape, generator=generator) * 255).byte()
    qparams = WeightQParams(torch.ones(len(w_q)), torch.full((len(w_q),), 128, dtype=torch.uint8), 8)
    own = QuantizedLayer("layer", QuantizedWeight(w_q, qparams), None, ActivationSchedule.static(QParams(1.0, 0, 8)))
    denoiser = Alone(layer)
    OneDnnRuntime(tools, torch.float32).lower(denoiser, [own])
    w = (w_q.long() - 128).double()
    sums = (
        F.conv2d(x.double(), w, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        if isinstance(layer, nn.Conv2d)
        else x.double() @ w.T
    )
    assert torch.equal(denoiser(x, 1.0).double(), sums)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_layer_that_does_not_fit_is_named_and_still_right(dtype: torch.dtype, tools: Tools) -> None:
    layer, shape = nn.Conv2d(4, 6, 3, padding=(1, 2)), (1, 4, 5, 5)
    own = quantized("layer", layer, 4, QParams.from_range(-2, 2, 10))
    exact, ours = Alone(layer), Alone(layer)
    ReferenceRuntime().lower(exact, [own])
    (execution,) = OneDnnRuntime(tools, dtype).lower(ours, [own])
    assert execution.fallback is not None
    assert "padding (1, 2)" in execution.fallback
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).float()
    assert torch.equal(ours(x, 1.0), exact(x, 1.0).to(dtype).float())  # the same integers whatever surrounds them


@torch.no_grad()
def test_numbers_that_are_embedded_are_not_rounded() -> None:
    seen = {}

    class Embedding(nn.Module):
        def forward(self, sample: Tensor, timestep: Tensor, added_cond_kwargs: dict[str, Tensor]) -> Tensor:
            seen.update(timestep=timestep, dtype=sample.dtype, **added_cond_kwargs)
            return sample

    denoiser = Embedding()
    compute_in(denoiser, torch.bfloat16)
    added = {"time_ids": torch.tensor([1023.0]), "text_embeds": torch.ones(2)}
    y = denoiser(torch.zeros(1), timestep=torch.tensor(999.0), added_cond_kwargs=added)
    assert y.dtype == torch.float32
    assert seen["dtype"] == seen["text_embeds"].dtype == torch.bfloat16
    assert (float(seen["timestep"]), float(seen["time_ids"])) == (999, 1023)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 0.05), (torch.bfloat16, 0.1)])
@torch.no_grad()
def test_a_whole_denoiser_is_close(
    tiny_pipe: StableDiffusionPipeline, dtype: torch.dtype, bound: float, tools: Tools
) -> None:
    unet = tiny_pipe.unet
    layers = [
        quantized(name, module, 8, QParams.from_range(-8, 8, 10))
        for name, module in unet.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    exact, ours = copy.deepcopy(unet), copy.deepcopy(unet)
    ReferenceRuntime().lower(exact, layers)
    executions = OneDnnRuntime(tools, dtype).lower(ours, layers)
    assert not [one for one in executions if one.fallback]
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, 16, generator=generator)
    expected, y = exact(x, 500, text).sample, ours(x, 500, text).sample
    assert y.dtype == torch.float32
    assert (y - expected).norm() <= bound * expected.norm()
    assert torch.equal(ours(x, 500, text).sample, y)  # what was remembered changes nothing


@pytest.mark.parametrize("return_dict", [True, False])
@torch.no_grad()
def test_what_is_not_a_number_is_not_made_one(
    tiny_pipe: StableDiffusionPipeline, tools: Tools, return_dict: bool
) -> None:
    unet = tiny_pipe.unet
    own = quantized("conv_in", unet.conv_in, 8, QParams.from_range(-8, 8, 8))
    OneDnnRuntime(tools, torch.float32).lower(unet, [own])
    x, text = torch.zeros(1, 4, 8, 8), torch.zeros(1, 7, 16)
    assert unet(x, 500, text, return_dict=return_dict)[0].isfinite().all()
    x[0, 0, 0, 0] = torch.nan
    assert unet(x, 500, text, return_dict=return_dict)[0].isnan().all()


@pytest.mark.parametrize("width", [1, 33, 64, 256])
@pytest.mark.parametrize("rows", [1, 6, 7])
def test_nibbles_come_back(rows: int, width: int, tools: Tools) -> None:
    generator = torch.Generator().manual_seed(0)
    zero_point = torch.randint(0, 16, (3, 1, width), generator=generator)
    blocks = torch.randint(0, 16, (3, rows, width), generator=generator) - zero_point
    signed = torch.cat([blocks.flatten(), torch.tensor([-128, 127, 5])]).to(torch.int8)
    nibbles = to_nibbles(signed, Arrangement(3, width, rest=3))
    assert nibbles is not None
    assert nibbles.packed.numel() == 3 * -(-rows // 2) * width
    for expand in (from_nibbles, tools.expand):
        out = torch.empty(nibbles.nbytes, dtype=torch.uint8)
        expand(nibbles, out)
        assert torch.equal(out.view(torch.int8), signed)


@pytest.mark.parametrize(
    "arrangement", [Arrangement(1, 2, rest=1), Arrangement(2, 3), Arrangement(1, 1), Arrangement(1, 2)]
)
def test_bytes_in_another_order_are_no_nibbles(arrangement: Arrangement) -> None:
    signed = torch.tensor([-8, 7, 8, 7], dtype=torch.int8)
    assert to_nibbles(signed, arrangement) is None
