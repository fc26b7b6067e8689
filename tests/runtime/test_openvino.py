"""The OpenVINO runtime against the reference on the same integers, and that it computes in integers indeed."""

import copy
import logging

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from bitbrush.network.layers import QuantizedLayer, layer_specs
from bitbrush.network.unet import UNET
from bitbrush.numerics.affine import AffineGrid
from bitbrush.numerics.weights import QuantizedWeight, WeightGrid
from bitbrush.runtime.interface import RuntimeUnavailable
from bitbrush.runtime.openvino import graph, package
from bitbrush.runtime.openvino.runtime import FloatingPointWarning, OpenVinoRuntime
from bitbrush.runtime.reference import ReferenceRuntime
from bitbrush.timeline.schedule import ActivationSchedule

pytest.importorskip("openvino", reason="the extra is not installed: pip install 'bitbrush[openvino]'")

TIMESTEPS = (900.0, 500.0, 1.0)


@pytest.fixture(autouse=True)
def _what_others_say(caplog: pytest.LogCaptureFixture) -> None:
    """pytest would collect what torch.export logs, at length."""
    caplog.set_level(logging.WARNING, logger="torch.__trace")


class Layers(nn.Module):
    """Every kind of layer side by side, on odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.padded = nn.Conv2d(8, 12, 3, padding=1)
        self.strided = nn.Conv2d(8, 6, 3, stride=2, padding=(1, 2), bias=False)
        self.dilated = nn.Conv2d(8, 12, 3, padding=2, dilation=2)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 5, padding=2, groups=8)
        self.pointwise = nn.Conv2d(8, 5, 1)
        self.tokens = nn.Linear(8, 7)
        self.rows = nn.Linear(8, 16, bias=False)

    def forward(self, sample: Tensor, timestep: Tensor | float) -> dict[str, Tensor]:
        tokens = sample.flatten(2).transpose(1, 2)
        inputs = {"tokens": tokens, "rows": tokens[:, 0]}
        return {name: layer(inputs.get(name, sample)) for name, layer in self.named_children()}


def integers(
    name: str, module: nn.Module, seed: int, *, weight_bits: int, bits: tuple[int, ...], one_zero_point: bool = False
) -> QuantizedLayer:
    """Any integers and grids; the grids reach over some four standard deviations to either side or one."""
    generator = torch.Generator().manual_seed(seed)
    rows = module.weight.shape[0]
    zero_point = torch.randint(0, 1 << weight_bits, (rows,), generator=generator)
    if weight_bits == 8:
        zero_point.fill_(128)
    grid = WeightGrid(0.01 + torch.rand(rows, generator=generator), zero_point.byte(), weight_bits)
    w_q = torch.randint(0, 1 << weight_bits, module.weight.shape, generator=generator).byte()
    share = torch.rand(len(bits), generator=generator).tolist()
    share = [share[0]] * len(bits) if one_zero_point else share
    grids = [
        AffineGrid(8.0 / (1 << b) * (1 + i / 3), int(s * ((1 << b) - 1)), b)
        for i, (s, b) in enumerate(zip(share, bits, strict=True))
    ]
    bias = None if module.bias is None else torch.randn(rows, generator=generator)
    return QuantizedLayer(name, QuantizedWeight(w_q, grid), bias, ActivationSchedule(TIMESTEPS, tuple(grids)))


def pair(denoiser: nn.Module, layers: list[QuantizedLayer], dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """The denoiser on the reference runtime and on OpenVINO's."""
    reference = copy.deepcopy(denoiser)
    ReferenceRuntime().lower(reference, layers)
    assert all(execution.fallback is None for execution in OpenVinoRuntime(dtype).lower(denoiser, layers))
    return reference.requires_grad_(False), denoiser


def difference(y: Tensor, expected: Tensor) -> float:
    """In the largest value expected."""
    return float((y - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("weight_bits", "bits", "one_zero_point"),
    [
        (8, (8, 8, 8), True),
        (8, (8, 8, 8), False),
        (4, (6, 8, 6), False),
        (3, (4, 4, 4), True),
        (4, (8, 8, 10), False),
        (8, (16, 16, 16), False),
        (2, (9, 13, 16), False),
    ],
)
def test_every_kind_of_layer_computes_the_same_in_integers(
    weight_bits: int, bits: tuple[int, ...], one_zero_point: bool
) -> None:
    """A FloatingPointWarning, which is an error here, would name the layers that OpenVINO left in floating point."""
    denoiser = Layers()
    layers = [
        integers(name, module, i, weight_bits=weight_bits, bits=bits, one_zero_point=one_zero_point)
        for i, (name, module) in enumerate(denoiser.named_children())
    ]
    reference, lowered = pair(denoiser, layers, torch.float32)
    x = torch.randn(2, 8, 9, 7, generator=torch.Generator().manual_seed(1))
    for timestep in (900.0, 1.0, torch.tensor(480)):
        expected = reference(x, timestep)
        for name, y in lowered(x, timestep).items():
            assert difference(y, expected[name]) < 1e-5, (name, timestep)


def test_bfloat16_rounds_results_and_not_scales() -> None:
    """Scales rounded to bfloat16 would move integers, and all of them the same way: 2^-9 of the largest value here."""
    denoiser = Layers()
    layers = [integers(n, m, 3, weight_bits=8, bits=(8, 8, 8)) for n, m in denoiser.named_children()]
    reference, lowered = pair(denoiser, layers, torch.bfloat16)
    x = torch.randn(2, 8, 9, 7, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    expected = reference(x, 500.0)
    for name, y in lowered(x, 500.0).items():
        assert y.dtype is torch.float32
        assert difference(y, expected[name]) < 0.02, name
        bias_of_scale = float((y * expected[name]).sum() / expected[name].square().sum()) - 1
        assert abs(bias_of_scale) < 5e-4, name


def test_a_layer_outside_signed_bytes_is_named_and_still_right() -> None:
    denoiser = Layers()
    layers = [integers(n, m, 5, weight_bits=8, bits=(8, 8, 10)) for n, m in denoiser.named_children()]
    grid = layers[0].weight.grid
    unsigned = WeightGrid(grid.scale, torch.zeros_like(grid.zero_point), 8)
    layers[0] = QuantizedLayer(
        layers[0].name, QuantizedWeight(layers[0].weight.w_q, unsigned), layers[0].bias, layers[0].activations
    )
    reference = copy.deepcopy(denoiser).requires_grad_(False)
    ReferenceRuntime().lower(reference, layers)
    executions = OpenVinoRuntime(torch.float32).lower(denoiser, layers)
    assert [e.layer for e in executions if e.fallback] == ["padded"]
    x = torch.randn(1, 8, 5, 5, generator=torch.Generator().manual_seed(1))
    for timestep in (900.0, 1.0):
        expected = reference(x, timestep)
        for name, y in denoiser(x, timestep).items():
            assert difference(y, expected[name]) < 1e-5, name


def test_what_openvino_leaves_in_floating_point_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = Layers()
    layers = [integers(n, m, 3, weight_bits=8, bits=(8, 8, 8)) for n, m in denoiser.named_children()]
    OpenVinoRuntime(torch.float32).lower(denoiser, layers)
    monkeypatch.setattr(graph, "_KERNELS", ("Convolution",))  # as if the others were none
    x = torch.zeros(1, 8, 3, 3)
    with pytest.warns(FloatingPointWarning, match="computes 2 quantized layers in floating point: rows, tokens$"):
        denoiser(x, 1.0)
    denoiser(x, 1.0)


def all_layers(unet: UNet2DConditionModel) -> list[QuantizedLayer]:
    """The U-Net's own weights to the nearest of 8 bits; activations within [-4, 4] and more."""
    found = []
    for spec in layer_specs(unet, UNET, weight_bits=8):
        module = unet.get_submodule(spec.name)
        scale = module.weight.detach().flatten(1).abs().amax(1) / 127
        w_q = (module.weight.detach() / scale.view(-1, *(1,) * (module.weight.dim() - 1))).round() + 128
        weight = QuantizedWeight(w_q.byte(), WeightGrid(scale, torch.full(scale.shape, 128, dtype=torch.uint8), 8))
        grids = tuple(AffineGrid.from_range(-4 - i, 4, 16 if spec.edge else 8) for i in range(len(TIMESTEPS)))
        bias = None if module.bias is None else module.bias.detach().clone()
        found.append(QuantizedLayer(spec.name, weight, bias, ActivationSchedule(TIMESTEPS, grids)))
    return found


def test_a_pipeline_runs_on_it_as_it_is(tiny_pipe: StableDiffusionPipeline) -> None:
    """One call agrees closely. Pictures less so: from the first integer that float32's order of sums decides otherwise,
    two runs round differently, and so do two runs of the reference whose latents differ by a millionth."""
    unet, layers = tiny_pipe.unet, all_layers(tiny_pipe.unet)
    reference = copy.deepcopy(unet).requires_grad_(False)
    ReferenceRuntime().lower(reference, layers)
    dtype, config = unet.dtype, dict(unet.config)
    OpenVinoRuntime(torch.float32).lower(unet, layers)
    assert not any(p.is_floating_point() and p.dim() > 1 for p in unet.parameters())  # one copy, in bytes
    assert (unet.dtype, dict(unet.config)) == (dtype, config)

    def draw() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        images = tiny_pipe("a cat", num_inference_steps=3, output_type="pt", generator=generator).images
        return images.clone()

    picture = draw()
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, 16, generator=generator)
    (y,) = unet(x, 500, text, return_dict=False)
    expected = reference(x, 500, text).sample
    assert float((y - expected).norm() / expected.norm()) < 0.02
    assert torch.equal(unet(x, torch.tensor(500), encoder_hidden_states=text, return_dict=False)[0], y)
    tiny_pipe.unet = reference
    assert float(-10 * torch.log10((picture - draw()).square().mean())) > 35


def test_other_sizes_and_types_are_answered_in_kind() -> None:
    denoiser = Layers()
    layers = [integers(n, m, 3, weight_bits=8, bits=(8, 8, 8)) for n, m in denoiser.named_children()]
    reference, lowered = pair(denoiser, layers, torch.float32)
    for size in ((1, 8, 5, 9), (3, 8, 6, 6), (1, 8, 5, 9), (2, 8, 4, 4), (3, 8, 6, 6)):
        x = torch.randn(size, generator=torch.Generator().manual_seed(1))
        expected = reference(x, 500.0)
        assert all(difference(y, expected[name]) < 1e-5 for name, y in lowered(sample=x, timestep=500.0).items())
    assert {y.dtype for y in lowered(x.bfloat16(), 500.0).values()} == {torch.bfloat16}
    with pytest.raises(ValueError, match="one call is one step"):
        lowered(x, torch.tensor([1.0, 2.0, 3.0]))


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RuntimeUnavailable, match=r"openvino.*not installed.*pip install 'bitbrush\[openvino\]'"):
        OpenVinoRuntime()


def test_other_types_are_refused() -> None:
    with pytest.raises(ValueError, match=r"float16.*float32 or bfloat16"):
        OpenVinoRuntime(torch.float16)
