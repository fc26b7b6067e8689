"""Probes against the error that quantizing one layer really makes."""

import torch
from torch import Tensor, nn

from bitbrush.calibration.probe import Candidates, guided, probe
from bitbrush.numerics.affine import QParams, fake_quantize
from bitbrush.numerics.limits import WeightRange
from bitbrush.numerics.weights import round_to_nearest, weight_qparams
from bitbrush.timeline.trajectory import DenoiserCall

PROMPTS, GUIDANCE, PROBES = 3, 4.0, 600


class Network(nn.Module):
    """Linear in its input, so that what a probe says to first order is exact; two layers read one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twin, self.last = nn.Linear(6, 8), nn.Linear(6, 8, bias=False), nn.Linear(8, 4)

    def forward(self, x: Tensor, timestep: Tensor) -> tuple[Tensor]:
        return (self.last(self.first(x) + 2 * self.twin(x)),)


def network_and_input() -> tuple[Network, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network(), torch.randn(2 * PROMPTS, 5, 6)


def estimated(network: Network, x: Tensor, candidates: Candidates, importance: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    call = DenoiserCall((x, torch.tensor(1.0)), {}, 1.0, (1.0,))
    found = [probe(network, call, candidates, importance, GUIDANCE, generator) for _ in range(PROBES)]
    return {
        **{f"input {name}": torch.stack([one.inputs[name] for one in found]).mean(0) for name in found[0].inputs},
        **{f"weight {name}": torch.stack([one.weights[name] for one in found]).mean(0) for name in found[0].weights},
    }


def squared(difference: Tensor, importance: Tensor) -> Tensor:
    return (guided(difference, PROMPTS, GUIDANCE).flatten(1).square().sum(1) * importance).sum()


@torch.no_grad()
def test_estimates_are_the_error_of_each_layer_and_candidate() -> None:
    network, x = network_and_input()
    all_qparams = [QParams.from_range(-2.0, 2.0, bits) for bits in (3, 5)]
    all_weight_qparams = [weight_qparams(network.twin.weight, bits, WeightRange.MIN_MAX) for bits in (3, 5)]
    importance = torch.tensor([1.0, 10.0, 0.0])
    found = estimated(
        network, x, Candidates({"first": all_qparams, "last": all_qparams}, {"twin": all_weight_qparams}), importance
    )

    inner = network.first(x) + 2 * network.twin(x)
    for index, qparams in enumerate(all_qparams):
        first = network.last(network.first(fake_quantize(x, qparams)) - network.first(x)) - network.last.bias
        last = network.last(fake_quantize(inner, qparams)) - network.last(inner)
        error = round_to_nearest(network.twin.weight, all_weight_qparams[index]).dequantize() - network.twin.weight
        twin = (2 * x @ error.T) @ network.last.weight.T
        for name, difference in (("input first", first), ("input last", last), ("weight twin", twin)):
            torch.testing.assert_close(found[name][index], squared(difference, importance), rtol=0.25, atol=0.0)


def test_a_layer_that_no_gradient_reaches_has_no_error() -> None:
    """The last block's text output, or an expert without tokens."""
    network, x = network_and_input()
    network.twin.forward = lambda x: torch.zeros(*x.shape[:-1], 8)
    qparams, weights = QParams.from_range(-1, 1, 4), weight_qparams(network.twin.weight, 4, WeightRange.MIN_MAX)
    found = estimated(
        network, x, Candidates({"first": [qparams], "twin": [qparams]}, {"twin": [weights]}), torch.ones(3)
    )
    assert float(found["input first"]) > 0
    assert float(found["input twin"]) == float(found["weight twin"]) == 0


def test_the_network_is_left_as_it_was() -> None:
    network, x = network_and_input()
    network.last.weight.requires_grad_(False)
    all_qparams = Candidates({"first": [QParams.from_range(-1, 1, 4)]}, {})
    probe(
        network,
        DenoiserCall((x, torch.tensor(1.0)), {}, 1.0, (1.0,)),
        all_qparams,
        torch.ones(PROMPTS),
        GUIDANCE,
        torch.Generator().manual_seed(0),
    )
    learned = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    assert [name for name, on in learned.items() if not on] == ["last.weight"]
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_guidance_needs_two_halves() -> None:
    output = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    assert guided(output, 2, 3.0).tolist() == [[10.0], [20.0]]
    assert guided(output, 4, 3.0) is output
