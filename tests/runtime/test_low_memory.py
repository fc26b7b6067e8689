"""4-bit weights that stay packed: they expand to what oneDNN's layouts hold, whatever these are."""

import copy
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from bitbrush.numerics.affine import QParams
from bitbrush.runtime.nibbles import from_nibbles, to_nibbles
from bitbrush.runtime.onednn import lowering
from bitbrush.runtime.onednn.layers import IntegerLayer, pack_linear
from bitbrush.runtime.onednn.opaque import Layout, is_accessible, opaque_bytes, wrap
from bitbrush.runtime.onednn.runtime import OneDnnRuntime
from bitbrush.runtime.onednn.weights import ExpandedWeights, Memory, NibbleWeights, PlainNibbleWeights, arrangements
from bitbrush.runtime.onednn.workspace import Workspace
from bitbrush.runtime.tools import Tools, best_tools, torch_tools
from tests.runtime.conftest import Alone
from tests.runtime.test_onednn import LAYERS, quantized

pytestmark = pytest.mark.usefixtures("exact_products")

WIDE = {"wide": (nn.Linear(96, 200), (3, 96)), "wide conv": (nn.Conv2d(40, 136, 3, padding=1), (2, 40, 5, 5))}
SOME = {**LAYERS, **WIDE, "depthwise": (nn.Conv2d(24, 24, 3, padding=1, groups=24), (1, 24, 5, 5))}


def lowered(layer: nn.Module, memory: Memory, tools: Tools | None = None) -> nn.Module:
    denoiser = Alone(layer)
    own = quantized("layer", denoiser.layer, 4, QParams.from_range(-1.5, 2.5, 8))
    OneDnnRuntime(tools or best_tools(), torch.float32, memory).lower(denoiser, [own])
    return denoiser


def weights_of(denoiser: nn.Module) -> object:
    assert isinstance(denoiser.layer, IntegerLayer)
    return denoiser.layer._weights


@pytest.mark.parametrize("name", list(SOME))
@torch.no_grad()
def test_outputs_are_those_of_expanded_weights_bit_by_bit(name: str) -> None:
    layer, shape = SOME[name]
    plain, low = lowered(layer, Memory.EXPANDED), lowered(layer, Memory.LOW)
    assert isinstance(weights_of(plain), ExpandedWeights)
    assert isinstance(weights_of(low), NibbleWeights)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(low(x, 1.0), plain(x, 1.0))
    assert torch.equal(low.state_dict()["layer.integer_weight"], plain.state_dict()["layer.integer_weight"])


def blocked(w: Tensor, channels: int, inputs: int, together: int) -> Tensor:
    """(C_out, C_in, ...) in blocks of ``channels``, each with all taps and blocks of ``inputs``, ``together`` last."""
    rows = nn.functional.pad(w.flatten(2), (0, 0, 0, -w.shape[1] % inputs, 0, -w.shape[0] % channels))
    split = rows.unflatten(1, (-1, inputs // together, together)).unflatten(0, (-1, channels))
    return split.permute(0, 5, 2, 3, 1, 4).flatten()


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "AVX-512, convolution": lambda w: blocked(w, 64, 4, 4),
    "AVX-512, narrow": lambda w: blocked(w, 16, 4, 4),
    "AMX": lambda w: blocked(w, 64, 64, 4),
    "AVX2, convolution": lambda w: blocked(w, 24, 4, 4),
    "AVX2, linear": lambda w: w.flatten(1).t().flatten(),
    "AVX2, depthwise": lambda w: blocked(w, 8, 1, 1),
    "AVX-512, linear": lambda w: torch.cat(
        [blocked(w, 64, 64, 4), torch.randint(-128, 128, (4 * 192,)).to(torch.int8)]
    ),
    "plain": torch.flatten,
}


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_the_layouts_of_processors_are_recognized(name: str) -> None:
    torch.manual_seed(0)
    zero_point = torch.randint(0, 16, (150, 1, 1, 1))
    stored = LAYOUTS[name]((torch.randint(0, 16, (150, 36, 3, 1)) - zero_point).to(torch.int8)).contiguous()
    found = [nibbles for one in arrangements(150, 1) if (nibbles := to_nibbles(stored, one))]
    assert found
    assert found[0].packed.nbytes + found[0].zero_point.nbytes <= 0.6 * len(stored)
    out = torch.empty(len(stored), dtype=torch.uint8)
    from_nibbles(found[0], out)
    assert torch.equal(out.view(torch.int8), stored)


@pytest.mark.parametrize("tools", [best_tools, lambda: torch_tools("asked for")], ids=["best", "torch"])
@torch.no_grad()
def test_unknown_layouts_are_packed_at_every_call_and_named_once(
    tools: Callable[[], Tools], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lowering, "is_accessible", lambda _: False)
    for layer, shape in SOME.values():
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            low = lowered(layer, Memory.LOW, tools())
        (record,) = caplog.records
        assert "1 layers, layer the first, are laid out at every call" in record.getMessage()
        assert isinstance(weights_of(low), PlainNibbleWeights)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        assert torch.equal(low(x, 1.0), lowered(layer, Memory.EXPANDED, tools())(x, 1.0))


def test_packed_weights_are_wrapped_where_they_lie() -> None:
    assert is_accessible(pack_linear)
    packed = pack_linear(torch.randint(-128, 128, (20, 12), dtype=torch.int8))
    layout, memory = Layout.of(packed), opaque_bytes(packed).clone()
    again = wrap(memory, layout)
    assert torch.equal(again.to_dense(), packed.to_dense())
    memory.zero_()
    assert not again.to_dense().any()
    with pytest.raises(ValueError, match=f"take {layout.nbytes} bytes, and the memory has 3"):
        wrap(memory[:3], layout)


@pytest.mark.parametrize("tools", [best_tools, lambda: torch_tools("asked for")], ids=["best", "torch"])
def test_a_first_call_in_inference_mode_allows_others_later(tools: Callable[[], Tools]) -> None:
    layer, shape = LAYERS["linear"]
    low, x = lowered(layer, Memory.LOW, tools()), torch.ones(shape)
    with torch.inference_mode():
        first = low(x, 1.0)
    with torch.no_grad():
        assert torch.equal(low(x, 1.0), first)


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 512), nn.Linear(512, 64)

    def forward(self, sample: Tensor, timestep: float) -> Tensor:
        y: Tensor = self.second(self.first(sample))
        return y


def test_threads_and_copies_of_a_denoiser_share_the_workspace_in_turns() -> None:
    denoiser = TwoLayers()
    layers = [quantized(name, layer, 4, QParams.from_range(-3, 3, 8)) for name, layer in denoiser.named_children()]
    OneDnnRuntime(best_tools(), torch.float32, Memory.LOW).lower(denoiser, layers)
    inputs = torch.randn(64, 5, 64, generator=torch.Generator().manual_seed(0))
    denoisers = denoiser, copy.deepcopy(denoiser)
    with torch.no_grad():
        expected = [denoiser(x, 1.0) for x in inputs]

    @torch.no_grad()
    def call(index: int) -> Tensor:
        y: Tensor = denoisers[index % 2](inputs[index], 1.0)
        return y

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(call, range(len(inputs))))
    assert all(torch.equal(y, own) for y, own in zip(answers, expected, strict=True))


def test_a_workspace_grows_with_what_is_reserved() -> None:
    workspace = Workspace()
    small, large = (pack_linear(torch.full((n, n), n, dtype=torch.int8)) for n in (16, 64))
    for packed in (small, large, small):
        layout = Layout.of(packed)
        workspace.reserve(layout.nbytes)
        with workspace.filled(
            layout, lambda out, packed=packed: out.copy_(opaque_bytes(packed).view(torch.uint8))
        ) as own:
            assert torch.equal(own.to_dense(), packed.to_dense())
    assert copy.deepcopy(workspace) is workspace
