"""Watching and replacing layers' inputs from outside."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bitbrush.network import inputs
from bitbrush.network.inputs import InputObserver, fake_quantize_input
from bitbrush.numerics.affine import QParams, fake_quantize
from bitbrush.numerics.histogram import Histogram, NonFiniteError

GRID = QParams(0.1, 3, 4)


class Attention(nn.Module):
    """Queries, keys and values from one tensor, then a layer with an input of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.q(x) + self.k(x) + self.v(x)
        return self.out(mixed)  # type: ignore[no-any-return]


@pytest.fixture
def network() -> Attention:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Attention()


def observed(network: nn.Module, *batches: Tensor) -> dict[str, Histogram]:
    observer = InputObserver()
    with observer.watching(network, ["q", "k", "v", "out"]), torch.no_grad():
        for x in batches:
            network(x)
    return observer.histograms


def same(a: Histogram, b: Histogram) -> bool:
    return (a.low, a.high, a.exponent) == (b.low, b.high, b.exponent) and torch.equal(a.counts, b.counts)


def test_sees_exactly_what_the_layers_are_given(network: Attention) -> None:
    first, second = (torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    histograms = observed(network, first, 5 * second)
    expected = Histogram.of(torch.cat([first, 5 * second]))
    assert all(same(histograms[name], expected) for name in "qkv")
    with torch.no_grad():
        mixed = [network.q(x) + network.k(x) + network.v(x) for x in (first, 5 * second)]
    assert same(histograms["out"], Histogram.of(torch.cat(mixed)))


def test_a_shared_input_is_counted_once(network: Attention, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[Tensor] = []

    class Counting(Histogram):
        @classmethod
        def of(cls, x: Tensor) -> Histogram:
            counted.append(x)
            return Histogram.of(x)

    monkeypatch.setattr(inputs, "Histogram", Counting)
    x = torch.ones(2, 4)
    observed(network, x)
    assert len(counted) == 2
    assert counted[0] is x
    # The next call of the network is counted again, even where it is given the same tensor.
    assert observed(network, x, x)["v"].counts.sum() == 2 * x.numel()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(network: Attention, value: float) -> None:
    with pytest.raises(NonFiniteError, match="layer q was given values from"):
        observed(network, torch.tensor([[1.0, 2.0, value, 3.0]]))
    with torch.no_grad():
        network.k.bias[1] = value
    with pytest.raises(NonFiniteError, match="layer out was given values from"):
        observed(network, torch.ones(1, 4))


def test_nothing_is_watched_afterwards(network: Attention) -> None:
    observer = InputObserver()
    with pytest.raises(NonFiniteError), observer.watching(network, ["q", "out"]):
        network(torch.full((1, 4), float("nan")))
    network(torch.ones(1, 4))
    assert observer.histograms == {}
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_without_a_grid_the_input_is_the_callers_own(network: Attention) -> None:
    seen: list[Tensor] = []
    fake_quantize_input(network.out, lambda: None)
    network.out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.randn(2, 4)
    network.out(x)
    assert seen[0] is x


@given(st.integers(0, 2**32))
def test_with_a_grid_the_layer_sees_integers(seed: int) -> None:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
    layer, plain = nn.Linear(4, 2), nn.Linear(4, 2)
    plain.load_state_dict(layer.state_dict())
    before = x.clone()
    handle = fake_quantize_input(layer, lambda: GRID)
    assert torch.equal(layer(x), plain(fake_quantize(x, GRID)))
    assert not torch.equal(layer(x), plain(x))
    assert torch.equal(x, before)
    handle.remove()
    assert torch.equal(layer(x), plain(x))


def test_the_grid_is_asked_for_at_every_call() -> None:
    all_qparams = iter([GRID, None, QParams(0.5, 0, 2)])
    layer = nn.Identity()
    fake_quantize_input(layer, lambda: next(all_qparams))
    x = torch.tensor([0.72, -0.31, 9.0])
    assert [layer(x).tolist() for _ in range(3)] == [
        fake_quantize(x, GRID).tolist(),
        x.tolist(),
        [0.5, 0.0, 1.5],
    ]
