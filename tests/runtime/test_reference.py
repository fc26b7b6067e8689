"""The reference runtime against the definition: integers, scales and the timestep, computed by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bitbrush.network.layers import QuantizedLayer, layer_specs
from bitbrush.network.unet import UNET
from bitbrush.numerics.affine import QParams
from bitbrush.numerics.weights import QuantizedWeight, WeightQParams
from bitbrush.runtime.reference import ReferenceRuntime
from bitbrush.timeline.schedule import ActivationSchedule

TIMESTEPS = (900.0, 500.0, 1.0)


class Denoiser(nn.Module):
    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=bias)
        self.linear = nn.Linear(6, 3, bias=bias)

    def forward(self, sample: Tensor, timestep: Tensor | float) -> Tensor:
        y: Tensor = self.linear(self.conv(sample).movedim(1, -1))
        return y


def integers(name: str, module: nn.Module, seed: int, *, weight_bits: int, activation_bits: int) -> QuantizedLayer:
    """Any integers and scales, as no method would choose them."""
    generator = torch.Generator().manual_seed(seed)

    def whole(limit: int, *shape: int) -> Tensor:
        return torch.randint(0, limit, shape, generator=generator)

    shape = module.weight.shape
    qparams = WeightQParams(
        0.01 + torch.rand(shape[0], generator=generator), whole(1 << weight_bits, shape[0]).byte(), weight_bits
    )
    weight = QuantizedWeight(whole(1 << weight_bits, *shape).byte(), qparams)
    all_qparams = [
        QParams(scale, int(whole(1 << activation_bits, 1)), activation_bits)
        for scale in (0.05 + torch.rand(len(TIMESTEPS), generator=generator)).tolist()
    ]
    bias = None if module.bias is None else torch.randn(shape[0], generator=generator)
    return QuantizedLayer(name, weight, bias, ActivationSchedule(TIMESTEPS, tuple(all_qparams)))


def by_hand(layer: QuantizedLayer, x: Tensor, timestep: float) -> tuple[Tensor, Tensor]:
    """Weight and input as their integers represent them, float64, from the equations alone."""
    qparams = layer.activations.qparams[TIMESTEPS.index(timestep)]
    x_q = (torch.round(x * (1 / torch.tensor(qparams.scale))) + qparams.zero_point).clamp(0, 2**qparams.bits - 1)
    x_hat = (x_q.double() - qparams.zero_point) * qparams.scale
    per_channel = (-1,) + (1,) * (layer.weight.w_q.dim() - 1)
    w_q, w_grid = layer.weight.w_q.double(), layer.weight.qparams
    w_hat = (w_q - w_grid.zero_point.double().view(per_channel)) * w_grid.scale.double().view(per_channel)
    return w_hat, x_hat


@pytest.mark.parametrize("bias", [True, False])
@given(seed=st.integers(0, 2**20), weight_bits=st.integers(2, 8), activation_bits=st.integers(4, 16))
def test_equals_the_equations(bias: bool, seed: int, weight_bits: int, activation_bits: int) -> None:
    denoiser = Denoiser(bias=bias)
    layers = [
        integers(name, module, seed + i, weight_bits=weight_bits, activation_bits=activation_bits)
        for i, (name, module) in enumerate(denoiser.named_children())
    ]
    ReferenceRuntime().lower(denoiser, layers)
    inputs: dict[str, Tensor] = {}
    for name, module in denoiser.named_children():
        module.register_forward_hook(lambda _, __, output, name=name: inputs.__setitem__(name, output.detach()))
    conv, linear = layers
    x = 3 * torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(seed))
    for timestep in (1.0, 900.0, 500.0):
        y = denoiser(x, torch.tensor(timestep))
        w, x_hat = by_hand(conv, x, timestep)
        expected = F.conv2d(x_hat, w, None if conv.bias is None else conv.bias.double(), 2, 1, 1, 2)
        torch.testing.assert_close(inputs["conv"].double(), expected, rtol=1e-4, atol=1e-3)
        w, x_hat = by_hand(linear, inputs["conv"].movedim(1, -1), timestep)
        expected = x_hat @ w.T + (0 if linear.bias is None else linear.bias.double())
        torch.testing.assert_close(y.detach().double(), expected, rtol=1e-4, atol=1e-3)


def test_between_calibrated_timesteps_the_nearest_counts() -> None:
    denoiser = Denoiser()
    layers = [integers(name, m, 0, weight_bits=4, activation_bits=6) for name, m in denoiser.named_children()]
    ReferenceRuntime().lower(denoiser, layers)
    x = torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    exact = [denoiser(x, t) for t in TIMESTEPS]
    assert not any(torch.equal(a, b) for a, b in ((exact[0], exact[1]), (exact[1], exact[2])))
    for timestep, index in [(999, 0), (701, 0), (700, 0), (699, 1), (499.5, 1), (251, 1), (250, 2), (0, 2)]:
        assert torch.equal(denoiser(x, timestep), exact[index])
    # No memory of earlier steps: a generation may be broken off anywhere.
    assert torch.equal(denoiser(x, TIMESTEPS[0]), exact[0])


def test_every_layer_is_told_to_be_emulated() -> None:
    denoiser = Denoiser()
    layers = [integers(name, m, 0, weight_bits=4, activation_bits=4) for name, m in denoiser.named_children()]
    executions = ReferenceRuntime().lower(denoiser, layers)
    assert [one.layer for one in executions] == ["conv", "linear"]
    assert all(one.fallback for one in executions)


def test_a_layer_called_before_its_denoiser_knows_no_timestep() -> None:
    denoiser = Denoiser()
    layer = integers("linear", denoiser.linear, 0, weight_bits=4, activation_bits=8)
    ReferenceRuntime().lower(denoiser, [layer])
    with pytest.raises(RuntimeError, match="no timestep is known"):
        denoiser.linear(torch.zeros(1, 6))


def test_a_pipeline_runs_on_it_and_what_is_not_named_stays(tiny_pipe: StableDiffusionPipeline) -> None:
    unet = tiny_pipe.unet
    before = copy.deepcopy(unet.state_dict())
    names = [spec.name for spec in layer_specs(unet, UNET, weight_bits=4)][::2]
    layers = [integers(name, unet.get_submodule(name), 0, weight_bits=8, activation_bits=8) for name in names]
    ReferenceRuntime().lower(unet, layers)
    changed = {name for name, tensor in unet.state_dict().items() if not torch.equal(tensor, before[name])}
    lowered = {f"{layer.name}.weight" for layer in layers}
    assert changed == lowered | {f"{layer.name}.bias" for layer in layers if layer.bias is not None}
    image = tiny_pipe("a cat", num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 16, 16, 3)
