"""Learned rounding of a whole denoiser: better than nearest, once through, the same every time."""

import copy
import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from bitbrush.network.family import Family
from bitbrush.network.layers import LayerSpec, layer_specs, set_weight
from bitbrush.network.unet import UNET
from bitbrush.numerics.limits import WeightRange
from bitbrush.numerics.weights import QuantizedWeight
from bitbrush.rounding import reconstruction
from bitbrush.rounding.compensation import Compensated
from bitbrush.rounding.learned import COMPENSATED, Procedure, learn_rounding
from bitbrush.rounding.nearest import RoundedLayer, round_all_to_nearest
from bitbrush.rounding.samples import record_samples
from bitbrush.session import offload as offloading
from bitbrush.session.offload import IN_MEMORY, Offload, is_offloaded
from bitbrush.session.session import Session
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import DenoiserCall, prompt_batches


def samples_of(pipe: StableDiffusionPipeline, seed: int, *, prompts: int) -> list[DenoiserCall]:
    batches = prompt_batches([f"cat {i} and dog" for i in range(prompts)], seed, prompts)
    return record_samples(pipe, UNET, batches, SamplingPlan(steps=8), Session())


def output_error(denoiser: nn.Module, rounded: Mapping[str, RoundedLayer], samples: Sequence[DenoiserCall]) -> float:
    quantized = copy.deepcopy(denoiser)
    for name, layer in rounded.items():
        set_weight(quantized.get_submodule(name), layer.weight.dequantize(), layer.bias)
    errors = [(sample.run(quantized)[0] - sample.run(denoiser)[0]).square().mean() for sample in samples]
    return float(torch.stack(errors).mean())


def learn(pipe: StableDiffusionPipeline, samples: Sequence[DenoiserCall]) -> dict[str, RoundedLayer]:
    specs = layer_specs(pipe.unet, UNET, weight_bits=4)
    return learn_rounding(pipe.unet, UNET, specs, WeightRange.MSE, samples, Session())


def test_beats_nearest_on_the_denoisers_output(tiny_pipe: StableDiffusionPipeline) -> None:
    specs = layer_specs(tiny_pipe.unet, UNET, weight_bits=4)
    nearest = round_all_to_nearest(tiny_pipe.unet, specs, WeightRange.MSE)
    samples = samples_of(tiny_pipe, 0, prompts=16)
    learned = learn(tiny_pipe, samples)
    for calls, share in [(samples, 0.6), (samples_of(tiny_pipe, 1, prompts=4), 0.8)]:
        errors = [output_error(tiny_pipe.unet, rounded, calls) for rounded in (learned, nearest)]
        assert errors[0] < share * errors[1]
    for spec in specs:
        weight = learned[spec.name].weight
        assert weight.qparams.bits == spec.weight_bits
        assert weight.w_q.shape == spec.shape
        assert int(weight.w_q.max()) <= weight.qparams.qmax


def test_once_through_either_network_the_same_each_time_and_no_trace(
    tiny_pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconstruction, "ITERATIONS", 15)
    samples = samples_of(tiny_pipe, 0, prompts=2)
    unet = tiny_pipe.unet
    before = copy.deepcopy(unet.state_dict())
    passes: list[tuple[int, Tensor]] = []
    # The hook travels along into the copy that takes on the rounded weights.
    with unet.register_forward_pre_hook(lambda module, args: passes.append((id(module), args[0]))):
        first = learn(tiny_pipe, samples)
    assert len({network for network, _ in passes}) == 2
    for network in {network for network, _ in passes}:
        given = [x for which, x in passes if which == network]
        assert len(given) == len(samples)
        assert all(x is sample.args[0] for x, sample in zip(given, samples, strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    assert all(parameter.requires_grad for parameter in unet.parameters())
    assert not any("forward" in module.__dict__ for module in unet.modules())

    second = learn(tiny_pipe, samples)
    assert first.keys() == second.keys() == {spec.name for spec in layer_specs(unet, UNET, weight_bits=4)}
    for name, layer in first.items():
        assert torch.equal(layer.weight.w_q, second[name].weight.w_q)
        assert torch.equal(layer.weight.qparams.scale, second[name].weight.qparams.scale)
        assert layer.bias is second[name].bias or torch.equal(layer.bias, second[name].bias)


def test_memory_does_not_grow_with_samples(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors that are there, and not on the disk, whenever a block of several layers is learned."""
    gc.collect()
    gc.freeze()  # what is there before is not looked through each time
    monkeypatch.setattr(offloading, "SMALLEST", 1)
    monkeypatch.setattr(reconstruction, "ITERATIONS", 0)
    usual, seen = reconstruction.reconstruct, list[int]()

    def counting(*given: Any, **keys: Any) -> dict[str, QuantizedWeight]:
        storages = {
            one.untyped_storage().data_ptr(): one.untyped_storage().nbytes()
            for one in gc.get_objects()
            if type(one) in (Tensor, nn.Parameter)
            and not is_offloaded(one)  # not those of compilers, which are nowhere
        }
        seen.append(sum(storages.values()))
        return usual(*given, **keys)

    counted = replace(COMPENSATED, reconstruct=counting)
    all_samples = samples_of(tiny_pipe, 0, prompts=16)
    specs = layer_specs(tiny_pipe.unet, UNET, weight_bits=4)

    def peak(samples: Sequence[DenoiserCall], offload: Offload) -> int:
        seen.clear()
        learn_rounding(
            tiny_pipe.unet, UNET, specs, WeightRange.MSE, samples, Session(offload=offload), procedure=counted
        )
        return max(seen)

    materialized = [peak(all_samples[:count], IN_MEMORY) for count in (1, 4)]
    on_disk = [peak(all_samples[:count], Offload(tmp_path)) for count in (1, 4)]
    sample = all_samples[0].args[0].nbytes
    assert materialized[1] > materialized[0] + 10 * sample  # what is measured is there
    assert on_disk[1] <= on_disk[0] + sample


def test_a_single_row_is_enough_to_run(tiny_pipe: StableDiffusionPipeline) -> None:
    batches = prompt_batches(["a cat"], 0, 1)
    plan = SamplingPlan(steps=2, guidance_scale=1.0)
    samples = record_samples(tiny_pipe, UNET, batches, plan, Session())
    assert [len(sample.args[0]) for sample in samples] == [1]
    learned = learn(tiny_pipe, samples)
    assert all(layer.weight.dequantize().isfinite().all() for layer in learned.values())


CALL = DenoiserCall((torch.randn(80, 3, generator=torch.Generator().manual_seed(0)),), {}, 0.0, ())


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.spare = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.again = False

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x))
        return self.a(y) if self.again else y


class Network(nn.Module):
    """Two blocks and a layer by itself; what is called how often is set by the test."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second, self.last = Block(), Block(), nn.Linear(3, 3)
        self.order = ["first", "second", "last"]
        self.threshold = 0.0

    def forward(self, x: Tensor) -> Tensor:
        for name in self.order:
            x = getattr(self, name)(x)
        return x


FAMILY = Family("network", "Network", blocks=lambda _: ("first", "second"), high_precision_layers=lambda _: ())


def learn_network(
    network: Network, *, leave_out: str, procedure: Procedure = COMPENSATED, calls: Sequence[DenoiserCall] = (CALL,)
) -> dict[str, RoundedLayer]:
    specs = specs_of(network, FAMILY, leave_out)
    return learn_rounding(network, FAMILY, specs, WeightRange.MSE, calls, Session(), procedure=procedure)


def specs_of(network: Network, family: Family, leave_out: str) -> list[LayerSpec]:
    specs = layer_specs(network, family, weight_bits=2, exclude=(leave_out,))
    return [spec for spec in specs if spec.excluded is None]


def test_called_once_all_is_well() -> None:
    assert set(learn_network(Network(), leave_out="*.spare")) == {"first.a", "first.b", "second.a", "second.b", "last"}


def test_what_follows_sees_the_weights_that_were_learned() -> None:
    def reverse(
        _: nn.Module, layers: Mapping[str, Compensated], *__: object, **___: object
    ) -> dict[str, QuantizedWeight]:
        weights = {name: layer.weight for name, layer in layers.items()}
        return {
            name: QuantizedWeight(weight.qparams.qmax - weight.w_q, weight.qparams) for name, weight in weights.items()
        }

    network = Network()
    outputs: list[tuple[int, Tensor]] = []
    network.first.register_forward_hook(lambda module, _, y: outputs.append((id(module), y)))
    rounded = learn_network(network, leave_out="*.spare", procedure=replace(COMPENSATED, reconstruct=reverse))
    went_on = next(y for module, y in reversed(outputs) if module != id(network.first))
    expected = copy.deepcopy(network.first)
    for name in ("a", "b"):
        layer = rounded[f"first.{name}"]
        set_weight(expected.get_submodule(name), layer.weight.dequantize(), layer.bias)
    assert torch.equal(went_on, expected(CALL.args[0]))


def test_a_block_called_again_goes_on_with_what_its_first_call_learned() -> None:
    again, once = Network(), Network()
    again.order = ["first", "second", "first", "last"]
    once.order = ["first", "second", "last"]
    rounded, expected = (learn_network(network, leave_out="*.spare") for network in (again, once))
    for layer in ("first.a", "first.b", "second.a", "second.b"):
        assert torch.equal(rounded[layer].weight.w_q, expected[layer].weight.w_q)
    assert not any("forward" in module.__dict__ for module in again.modules())


@pytest.mark.parametrize("lengths", [(3, 3), (3, 7)])
def test_texts_may_differ_in_length(lengths: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    calls = [DenoiserCall((torch.randn(8, n, 3, generator=generator),), {}, 0.0, ()) for n in lengths]
    network = Network()
    rounded = learn_network(network, leave_out="*.spare", calls=calls)
    specs = layer_specs(network, FAMILY, weight_bits=2, exclude=("*.spare",))
    nearest = round_all_to_nearest(network, [spec for spec in specs if spec.excluded is None], WeightRange.MSE)
    assert output_error(network, rounded, calls) < output_error(network, nearest, calls)


def test_blocks_with_tokens_first_are_compensated_layer_by_layer() -> None:
    """The rows of ERNIE-Image's blocks are tokens, and attention needs all of them."""

    class TokensFirst(Network):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.transpose(0, 1)).transpose(0, 1)

    def fail(*_: object, **__: object) -> dict[str, QuantizedWeight]:
        pytest.fail("a block was reconstructed by its rows")

    call = DenoiserCall((torch.randn(8, 5, 3),), {}, 0.0, ())
    network = TokensFirst()
    rounded = learn_network(
        network, leave_out="*.spare", calls=[call], procedure=replace(COMPENSATED, reconstruct=fail)
    )
    assert set(rounded) == {"first.a", "first.b", "second.a", "second.b", "last"}


def test_experts_that_get_other_tokens_are_compensated_without_drift() -> None:
    """Routing depends on the network's values, so the quantized network may pass on fewer tokens."""

    class Routed(Network):
        def forward(self, x: Tensor) -> Tensor:
            for name in ("first", "second"):
                x = getattr(self, name)(x)
            return self.last(x[x[:, 0] > self.threshold])

    network = Routed()
    network.threshold = float(network.second(network.first(CALL.args[0])).detach()[:, 0].median())
    rounded = learn_network(network, leave_out="*.spare")
    assert rounded["last"].weight.dequantize().isfinite().all()


def test_a_block_never_called_is_named() -> None:
    network = Network()
    network.order = ["first", "last"]
    with pytest.raises(ValueError, match="block second is never called by the denoiser; exclude it by pattern"):
        learn_network(network, leave_out="*.spare")


def test_a_layer_called_twice_within_its_block_is_rounded_once() -> None:
    network = Network()
    network.second.again = True
    rounded = learn_network(network, leave_out="*.spare")
    assert rounded["second.a"].weight.w_q.shape == network.second.a.weight.shape


def test_a_layer_never_called_within_its_block_is_named() -> None:
    with pytest.raises(ValueError, match=r"layer second\.spare is never called by the denoiser; exclude it by pattern"):
        learn_network(Network(), leave_out="first.spare")
