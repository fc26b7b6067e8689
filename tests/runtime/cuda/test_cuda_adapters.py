"""LoRAs on the GPU runtime: computed in fused blocks and joined layers, and never replayed from an older graph."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from bitbrush.network.layers import set_weight
from bitbrush.runtime.choose import Choice
from bitbrush.runtime.cuda.runtime import CudaRuntime
from bitbrush.runtime.lowered import lower
from tests.runtime.changes import apart, fused, quantized_layers
from tests.runtime.cuda.test_runtime import small_unet
from tests.runtime.cuda.test_user_changes import TEXT_WIDTH, Recorder, call
from tests.runtime.loras import attach, random_lora

pytest.importorskip("peft", reason="the extra 'lora' is not installed")


def test_all_layers_are_adapted_as_in_full_precision(device: torch.device) -> None:
    exact, ours = (small_unet(TEXT_WIDTH).eval() for _ in range(2))
    layers = quantized_layers(ours)
    for layer in layers:
        set_weight(exact.get_submodule(layer.name), layer.weight.dequantize(), layer.bias)
    lower(ours, Choice(CudaRuntime(device, torch.float32), "for this test", device=device), layers)
    before, blocks = call(ours), fused(ours)
    lora = random_lora(exact, strength=0.5)
    for unet in (exact, ours):
        attach(unet, lora)
    assert apart(call(exact), before) > 0.05
    assert apart(call(ours), call(exact)) < 3e-3
    assert fused(ours) == blocks
    copied: Any = copy.deepcopy(ours)
    copied.unload_lora()
    assert torch.equal(call(copied), before)


class Small(ModelMixin, ConfigMixin, PeftAdapterMixin):  # type: ignore[misc]
    """A denoiser of one quantized layer that takes LoRAs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.layer = nn.LayerNorm(12), nn.Linear(12, 12)

    def forward(self, sample: Tensor, timestep: Tensor) -> tuple[Tensor]:
        return (self.layer(self.norm(sample)),)


@pytest.fixture
def recorded(device: torch.device) -> tuple[Any, Recorder, Callable[[], Tensor]]:
    """A denoiser whose second call was recorded, the recorder, and what calls it again."""
    denoiser, record = Small(), Recorder()
    runtime = CudaRuntime(device, torch.float32, record=record)
    lower(denoiser, Choice(runtime, "for this test", device=device), quantized_layers(denoiser))
    x = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))

    def again() -> Tensor:
        with torch.no_grad():
            y: Tensor = denoiser(x, torch.tensor(500.0))[0]
        return y

    assert torch.equal(again(), again())
    assert (record.recorded, record.replayed) == (1, 1)
    return denoiser, record, again


def lora(seed: int = 0) -> dict[str, Tensor]:
    return random_lora(Small(), strength=1.0, seed=seed)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "scale": lambda denoiser: denoiser.set_adapters(["style"], [0.5]),
    "disable": lambda denoiser: denoiser.disable_lora(),
    "delete": lambda denoiser: denoiser.delete_adapters("style"),
    "unload": lambda denoiser: denoiser.unload_lora(),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_a_graph_is_recorded_anew_for_other_adapters(
    name: str, recorded: tuple[Any, Recorder, Callable[[], Tensor]]
) -> None:
    denoiser, record, again = recorded
    before = again()
    replayed = record.replayed
    for number, change in enumerate((lambda one: attach(one, lora()), CHANGES[name]), start=2):
        change(denoiser)
        first = again()
        assert record.replayed == replayed, "the call after a change is a trial run"
        assert torch.equal(again(), first)
        assert torch.equal(again(), first)
        assert record.recorded == number
        assert record.replayed > replayed
        replayed = record.replayed
        assert (apart(first, before) == 0) is (number == 3 and name in ("disable", "delete", "unload"))


def test_factors_that_are_swapped_in_place_are_read_by_the_same_graph(
    recorded: tuple[Any, Recorder, Callable[[], Tensor]],
) -> None:
    """A replay reads parameters where they were recorded; the swap writes there."""
    denoiser, _, again = recorded
    attach(denoiser, lora(1))
    expected = again()
    denoiser.unload_lora()
    attach(denoiser, lora())
    places = {name: one.data_ptr() for name, one in denoiser.named_parameters() if "lora_" in name}
    again()
    attach(denoiser, lora(1), hotswap=True)
    assert places == {name: one.data_ptr() for name, one in denoiser.named_parameters() if "lora_" in name}
    assert torch.equal(again(), expected)
