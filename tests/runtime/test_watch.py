"""Counts of clipped values: exact, the same on each runtime, named by layer and step, and gone afterwards."""

import warnings
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

import bitbrush
from bitbrush.network.first_token import FirstToken, answer_first_token, without_known_token
from bitbrush.numerics.affine import QParams, quantize
from bitbrush.runtime.choose import Choice
from bitbrush.runtime.interface import Runtime
from bitbrush.runtime.lowered import lower
from bitbrush.runtime.onednn.runtime import OneDnnRuntime
from bitbrush.runtime.reference import ReferenceRuntime
from bitbrush.runtime.tools import best_tools
from bitbrush.runtime.watch import Clipped, clipped_values
from bitbrush.timeline.schedule import ActivationSchedule, DynamicRanges
from tests.runtime.changes import BLOCK, fused, quantized_layers
from tests.runtime.loras import attach

pytestmark = pytest.mark.usefixtures("exact_products")
NARROW = f"{BLOCK}.attn1.to_q"
RUNTIMES: dict[str, Runtime] = {
    "reference": ReferenceRuntime(),
    "onednn": OneDnnRuntime(best_tools(), torch.float32),
}


def loaded(pipe: StableDiffusionPipeline, runtime: str, *, bound: float = 0.5) -> StableDiffusionPipeline:
    """Quantizes all layers with ranges that clip nothing, but NARROW's to ``bound`` and one layer's at run time."""
    layers = {layer.name: layer for layer in quantized_layers(pipe.unet)}
    for name, layer in layers.items():
        object.__setattr__(layer, "activations", ActivationSchedule.static(QParams.from_range(-1000, 1000, 16)))
        if name == NARROW:
            schedule = ActivationSchedule.static(QParams.from_range(-bound, bound, 8))
            object.__setattr__(layer, "activations", schedule)
        if name == f"{BLOCK}.attn1.to_k":
            object.__setattr__(layer, "activations", DynamicRanges(8))
    lower(pipe.unet, Choice(RUNTIMES[runtime], "for this test"), list(layers.values()))
    return pipe


def run(pipe: StableDiffusionPipeline) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    y: Tensor = pipe("a cat", num_inference_steps=2, generator=generator, output_type="latent")[0]
    return y


@pytest.fixture(params=list(RUNTIMES))
def pipe(request: pytest.FixtureRequest, tiny_pipe: StableDiffusionPipeline) -> StableDiffusionPipeline:
    return loaded(tiny_pipe, request.param)


@pytest.mark.parametrize("qparams", [QParams.from_range(-1, 1, 4), QParams.from_range(0, 2, 8)])
def test_values_whose_integers_are_clamped_are_counted(qparams: QParams) -> None:
    x = torch.linspace(-3, 3, 601)
    free = (x / qparams.scale).round() + qparams.zero_point
    assert clipped_values(x, qparams) == int((quantize(x, qparams) != free).sum()) > 100


def test_a_layer_whose_range_is_too_narrow_is_named_once(pipe: Any) -> None:
    inputs: list[Tensor] = []
    blocks, before = fused(pipe.unet), run(pipe)
    handle = pipe.unet.get_submodule(NARROW).register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone()))
    message = rf"1 of \d+ layers clip more than 1%.*{NARROW}.*--lora"
    with pytest.warns(UserWarning, match=message) as warned, bitbrush.watch(pipe) as clipped:
        run(pipe)
    handle.remove()
    assert len(warned) == 1
    shares = clipped.shares()
    assert f"{BLOCK}.attn1.to_k" not in shares
    qparams = QParams.from_range(-0.5, 0.5, 8)
    found = shares.pop(NARROW)
    assert len(found) == 2
    total = sum(clipped_values(x, qparams) for x in inputs) / sum(x.numel() for x in inputs)
    assert min(found.values()) <= total <= max(found.values())
    assert not any(share for steps in shares.values() for share in steps.values())
    assert str(clipped).splitlines()[1].endswith(NARROW)
    assert fused(pipe.unet) == blocks
    assert torch.equal(run(pipe), before)


def test_nothing_clipped_is_no_warning(tiny_pipe: StableDiffusionPipeline) -> None:
    pipe = loaded(tiny_pipe, "reference", bound=1000.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with bitbrush.watch(pipe) as clipped:
            run(pipe)
    assert not clipped.many()


def test_what_a_lora_moves_out_of_the_ranges_is_counted(pipe: Any) -> None:
    pytest.importorskip("peft", reason="the extra 'lora' is not installed")
    with pytest.warns(UserWarning, match="clip more"), bitbrush.watch(pipe) as without:
        run(pipe)
    attach(pipe.unet, lora(pipe.unet))
    with pytest.warns(UserWarning, match="clip more"), bitbrush.watch(pipe) as clipped:
        run(pipe)
    assert clipped.shares().keys() == without.shares().keys()
    assert clipped.shares()[NARROW] != without.shares()[NARROW]


def lora(unet: Any) -> dict[str, Tensor]:
    """Makes factors for NARROW and for a layer before it, with a strong effect."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name in (NARROW, f"{BLOCK.rpartition('.transformer_blocks')[0]}.proj_in"):
        shape = tuple(unet.get_submodule(name).weight.shape)
        tensors[f"unet.{name}.lora_A.weight"] = 3 * torch.randn(2, *shape[1:], generator=generator)
        tensors[f"unet.{name}.lora_B.weight"] = torch.randn(shape[0], 2, *shape[2:], generator=generator)
    return tensors


def test_a_known_first_token_is_not_counted() -> None:
    layer = nn.Linear(4, 4)
    start = torch.full((4,), 100.0)
    x = torch.zeros(2, 3, 4)
    x[0, 0] = start
    assert without_known_token(layer, x) is x
    answer_first_token(layer, FirstToken(start, torch.zeros(4)))
    kept = without_known_token(layer, x)
    assert kept.shape == (5, 4)
    assert kept.max() == 0


def test_a_full_precision_pipeline_is_refused(tiny_pipe: StableDiffusionPipeline) -> None:
    message = r"is not quantized; watch a pipeline of bitbrush\.load"
    with pytest.raises(ValueError, match=message), bitbrush.watch(tiny_pipe):
        pass


def test_counts_of_calls_add_up() -> None:
    clipped = Clipped()
    for count in (1, 3):
        clipped.add("layer", 5.0, clipped=count, of=8)
    clipped.add("layer", 9.0, clipped=0, of=8)
    assert clipped.shares() == {"layer": {9.0: 0.0, 5.0: 0.25}}
    assert clipped.many() == {"layer": (5.0, 0.25)}
