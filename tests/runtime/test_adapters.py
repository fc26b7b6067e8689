"""LoRAs on lowered denoisers: each runtime computes what full precision does, fused, and forgets them afterwards."""

import copy
import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from bitbrush.network.layers import set_weight
from bitbrush.network.low_rank import branch_, factors, set_factors, weight_reader
from bitbrush.network.skip_inputs import with_split_skips
from bitbrush.network.unet import UNET
from bitbrush.runtime.choose import Choice
from bitbrush.runtime.interface import Runtime
from bitbrush.runtime.lowered import lower
from bitbrush.runtime.onednn.runtime import OneDnnRuntime
from bitbrush.runtime.reference import ReferenceRuntime
from bitbrush.runtime.tools import best_tools
from tests.runtime.changes import BLOCK, RESNET, apart, call, fused, quantized_layers
from tests.runtime.loras import attach, attention, random_lora, scaled_sum

pytestmark = pytest.mark.usefixtures("exact_products")
peft = pytest.importorskip("peft", reason="the extra 'lora' is not installed")

CLOSE = 2e-3
"""Relative distance from full precision: layers have 16-bit inputs, and the float network has the integers' weights."""


def runtimes() -> dict[str, tuple[Runtime, float]]:
    """By name, with the distance that its dtype allows."""
    return {
        "reference": (ReferenceRuntime(), CLOSE),
        "onednn": (OneDnnRuntime(best_tools(), torch.float32), CLOSE),
        "bfloat16": (OneDnnRuntime(best_tools(), torch.bfloat16), 0.03),
    }


@dataclass
class Pair:
    """A denoiser in full precision, and lowered; both are given the same LoRAs."""

    exact: Any
    ours: Any
    bound: float

    def attach(self, tensors: dict[str, Tensor], name: str = "style", **options: Any) -> None:
        for unet in (self.exact, self.ours):
            attach(unet, tensors, name, **options)

    def each(self, change: Callable[[Any], Any]) -> None:
        for unet in (self.exact, self.ours):
            change(unet)

    def assert_close(self, **arguments: Any) -> Tensor:
        expected = call(self.exact, **arguments)
        assert apart(call(self.ours, **arguments), expected) < self.bound
        return expected


def paired(unet: nn.Module, runtime: str, parts: nn.Module | None = None) -> Pair:
    """``parts`` is the same network with split or branched layers, to be lowered instead."""
    chosen, bound = runtimes()[runtime]
    exact, ours = copy.deepcopy(unet), copy.deepcopy(unet if parts is None else parts)
    layers = quantized_layers(ours)
    if parts is None:
        for layer in layers:
            set_weight(exact.get_submodule(layer.name), layer.weight.dequantize(), layer.bias)
    lower(ours, Choice(chosen, "for this test"), layers)
    return Pair(exact, ours, bound if parts is None else 0.03)


@pytest.fixture(scope="module")
def lowered(_one_tiny_pipe: StableDiffusionPipeline) -> Callable[[str], Pair]:
    """Lowers a denoiser once for each runtime and gives copies of it, which takes less time."""
    whole = functools.cache(lambda runtime: paired(_one_tiny_pipe.unet, runtime))
    return lambda runtime: copy.deepcopy(whole(runtime))


@pytest.fixture(params=list(runtimes()))
def pair(request: pytest.FixtureRequest, lowered: Callable[[str], Pair]) -> Pair:
    return lowered(request.param)


@pytest.fixture
def onednn(lowered: Callable[[str], Pair]) -> Pair:
    return lowered("onednn")


def test_all_layers_are_adapted_as_in_full_precision(pair: Pair) -> None:
    before, blocks = pair.assert_close(), fused(pair.ours)
    pair.attach(random_lora(pair.exact, strength=0.5))
    expected = pair.assert_close()
    assert apart(expected, before) > 10 * pair.bound
    assert fused(pair.ours) == blocks


@pytest.mark.parametrize("layer", ["conv1", "conv2", "time_emb_proj", "conv_shortcut"])
def test_each_layer_of_a_residual_block_is_adapted(layer: str, onednn: Pair) -> None:
    before = onednn.assert_close()
    onednn.attach(random_lora(onednn.exact, strength=2.0, layers=lambda name: name.endswith(f".{layer}")))
    assert apart(onednn.assert_close(), before) > 2 * CLOSE


TRANSFORMER_LAYERS = "attn1.to_q attn1.to_v attn1.to_out.0 attn2.to_q attn2.to_k attn2.to_v ff.net.0.proj ff.net.2"


@pytest.mark.parametrize("layer", [*TRANSFORMER_LAYERS.split(), "proj_in", "proj_out", "upsamplers.0.conv"])
def test_each_layer_of_a_transformer_is_adapted(layer: str, onednn: Pair) -> None:
    before = onednn.assert_close()
    onednn.attach(random_lora(onednn.exact, strength=0.5, layers=lambda name: name.endswith(f".{layer}")))
    effect = onednn.assert_close() - before
    assert apart(call(onednn.ours) - before, effect) < 0.2


def test_nothing_remains_of_an_unloaded_one(pair: Pair) -> None:
    before, blocks, modules = call(pair.ours), fused(pair.ours), dict(pair.ours.named_modules())
    bytes_before = pair.ours.get_memory_footprint()
    for remove in (lambda: pair.ours.unload_lora(), lambda: pair.ours.delete_adapters("style")):
        attach(pair.ours, random_lora(pair.exact, strength=0.5))
        assert pair.ours.get_memory_footprint() > bytes_before
        assert not torch.equal(call(pair.ours), before)
        remove()
        assert dict(pair.ours.named_modules()) == modules
        assert fused(pair.ours) == blocks
        assert torch.equal(call(pair.ours), before)
        assert pair.ours.get_memory_footprint() == bytes_before


def test_a_disabled_one_costs_nothing(pair: Pair) -> None:
    before = call(pair.ours)
    attach(pair.ours, random_lora(pair.exact, strength=0.5))
    adapted = call(pair.ours)
    pair.ours.disable_lora()
    assert torch.equal(call(pair.ours), before)
    pair.ours.enable_lora()
    assert torch.equal(call(pair.ours), adapted)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
def test_several_add_up_by_their_weights(pair: Pair) -> None:
    first, second = (random_lora(pair.exact, strength=0.4, seed=seed) for seed in (0, 1))
    attach(pair.ours, first, "first")
    attach(pair.ours, second, "second")
    pair.ours.set_adapters(["first", "second"], [0.5, -1.5])
    attach(pair.exact, scaled_sum(first, 0.5, second, -1.5))
    pair.assert_close()
    pair.ours.delete_adapters("second")
    pair.ours.set_adapters("first", 1.0)
    pair.exact.unload_lora()
    attach(pair.exact, first, "first")
    pair.assert_close()


def test_one_is_swapped_for_another_in_place(pair: Pair) -> None:
    first, second = (random_lora(pair.exact, strength=0.4, seed=seed) for seed in (0, 1))
    attach(pair.ours, second)
    expected = call(pair.ours)
    pair.ours.unload_lora()
    attach(pair.ours, first)
    call(pair.ours)
    attach(pair.ours, {key: x.half() for key, x in first.items()}, hotswap=True)
    attach(pair.ours, second, hotswap=True)
    assert torch.equal(call(pair.ours), expected)


def test_one_of_a_higher_rank_is_swapped_in_after_preparation(onednn: Pair) -> None:
    onednn.each(lambda unet: unet.enable_lora_hotswap(target_rank=8))
    low, high = (random_lora(onednn.exact, strength=0.4, rank=rank) for rank in (2, 8))
    onednn.attach(low)
    first = onednn.assert_close()
    onednn.attach(high, hotswap=True)
    assert apart(onednn.assert_close(), first) > 10 * CLOSE


def test_the_scale_of_a_call_is_obeyed(pair: Pair) -> None:
    pair.attach(random_lora(pair.exact, strength=0.5))
    whole, half = pair.assert_close(), pair.assert_close(cross_attention_kwargs={"scale": 0.5})
    assert apart(half, whole) > pair.bound


def test_adapters_that_do_more_than_add_are_computed_layer_by_layer(onednn: Pair) -> None:
    config = peft.LoHaConfig(r=4, alpha=4, target_modules=["to_q", "conv1"], init_weights=False)
    oft = peft.OFTConfig(r=0, oft_block_size=4, target_modules=["to_v"], init_weights=False, use_cayley_neumann=False)
    for name, one in {"loha": config, "oft": oft}.items():
        for unet in (onednn.exact, onednn.ours):
            torch.manual_seed(0)
            unet.add_adapter(copy.deepcopy(one), name)
        assert BLOCK not in fused(onednn.ours)
        onednn.assert_close()
        onednn.each(lambda unet: unet.unload_lora())
        assert BLOCK in fused(onednn.ours)


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}]
)
def test_what_needs_weights_is_refused(options: dict[str, Any], onednn: Pair) -> None:
    before, modules = call(onednn.ours), dict(onednn.ours.named_modules())
    with pytest.raises(ValueError, match=r"no weight in floating point.*before bitbrush\.quantize"):
        onednn.ours.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], **options))
    assert dict(onednn.ours.named_modules()) == modules
    assert torch.equal(call(onednn.ours), before)


def test_fusing_is_refused_with_the_remedy(pair: Pair) -> None:
    attach(pair.ours, random_lora(pair.exact, strength=0.5, layers=attention))
    before = call(pair.ours)
    with pytest.raises(ValueError, match=r"leave it loaded, pipe\.set_adapters.*quantize MODEL --lora FILE@SCALE"):
        pair.ours.fuse_lora()
    assert torch.equal(call(pair.ours), before)


def misfits(unet: nn.Module) -> dict[str, tuple[dict[str, Tensor], str]]:
    good = random_lora(unet, strength=0.5, layers=lambda name: name == f"{RESNET}.conv1")
    down, up = f"unet.{RESNET}.conv1.lora_A.weight", f"unet.{RESNET}.conv1.lora_B.weight"
    other = {key.replace("conv1", "conv9"): x for key, x in good.items()}
    return {
        "layer": ({**good, **other}, rf"has layer {RESNET}\.conv9, and UNet2DConditionModel has none"),
        "input": ({**good, down: good[down][:, :-1]}, rf"{RESNET}\.conv1\.lora_A\.weight is .* has a weight of"),
        "kernel": ({**good, down: good[down][..., :1]}, r"lora_A\.weight is .* has a weight of"),
        "output": ({**good, up: good[up][:-1]}, r"lora_B\.weight is .* has a weight of"),
    }


@pytest.mark.parametrize("name", ["layer", "input", "kernel", "output"])
def test_one_of_another_model_is_refused_and_changes_nothing(name: str, onednn: Pair) -> None:
    before, modules = call(onednn.ours), dict(onednn.ours.named_modules())
    tensors, message = misfits(onednn.exact)[name]
    with pytest.raises(ValueError, match=message):
        attach(onednn.ours, tensors)
    assert dict(onednn.ours.named_modules()) == modules
    assert torch.equal(call(onednn.ours), before)
    assert not getattr(onednn.ours, "peft_config", None)


def test_it_is_saved_as_it_was_loaded_and_the_denoiser_is_not(pair: Pair, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    lora = random_lora(pair.exact, strength=0.5, layers=attention)
    attach(pair.ours, lora)
    with pytest.raises(ValueError, match=r"has an adapter .* unload it first"):
        pair.ours.save_pretrained(tmp_path / "unet")
    state = pair.ours.state_dict()
    assert sum("lora_" in key for key in state) == len(lora)
    pair.ours.save_lora_adapter(tmp_path, adapter_name="style", weight_name="style.safetensors")
    saved = load_file(tmp_path / "style.safetensors")
    assert saved.keys() == {key.removeprefix("unet.") for key in lora}
    for key, tensor in saved.items():
        assert torch.equal(tensor, lora[f"unet.{key}"].to(tensor.dtype))


def test_a_copy_has_adapters_of_its_own(pair: Pair) -> None:
    before = call(pair.ours)
    attach(pair.ours, random_lora(pair.exact, strength=0.5))
    adapted, other = call(pair.ours), copy.deepcopy(pair.ours)
    assert torch.equal(call(other), adapted)
    assert fused(other) == fused(pair.ours)
    pair.ours.unload_lora()
    assert torch.equal(call(pair.ours), before)
    assert torch.equal(call(other), adapted)
    other.unload_lora()
    assert torch.equal(call(other), before)


def test_hooks_of_an_adapted_layer_fire(onednn: Pair) -> None:
    onednn.attach(random_lora(onednn.exact, strength=0.5))
    before = onednn.assert_close()
    layers = [unet.get_submodule(f"{BLOCK}.attn1.to_v") for unet in (onednn.exact, onednn.ours)]
    handles = [layer.register_forward_pre_hook(lambda _, args: (3 * args[0],)) for layer in layers]
    assert apart(onednn.assert_close(), before) > CLOSE
    assert BLOCK not in fused(onednn.ours)
    for handle in handles:
        handle.remove()
    onednn.assert_close()
    assert BLOCK in fused(onednn.ours)


def test_a_change_made_before_is_still_obeyed(onednn: Pair) -> None:
    handles = [
        unet.get_submodule(f"{BLOCK}.attn1.to_v").register_forward_hook(lambda _, __, y: 3 * y)
        for unet in (onednn.exact, onednn.ours)
    ]
    onednn.attach(random_lora(onednn.exact, strength=0.5, layers=lambda name: BLOCK not in name))
    assert BLOCK not in fused(onednn.ours)
    onednn.assert_close()
    for handle in handles:
        handle.remove()
    onednn.assert_close()
    onednn.ours.unload_lora()
    assert BLOCK in fused(onednn.ours)


def test_split_convolutions_are_adapted_as_one(tiny_pipe: StableDiffusionPipeline) -> None:
    split = with_split_skips(tiny_pipe.unet, UNET)
    for runtime in ("reference", "onednn"):
        pair = paired(tiny_pipe.unet, runtime, split)
        pair.attach(random_lora(pair.exact, strength=1.0, layers=lambda name: name.endswith((".conv1", "shortcut"))))
        pair.assert_close()
        assert runtime == "reference" or RESNET in fused(pair.ours)


def test_branched_layers_are_adapted_as_one(tiny_pipe: StableDiffusionPipeline) -> None:
    unet = copy.deepcopy(tiny_pipe.unet)
    names = [f"{BLOCK}.attn1.to_q", f"{BLOCK}.ff.net.0.proj", f"{RESNET}.conv2"]
    read = {name: weight_reader(unet.get_submodule(name)) for name in names}
    branch_(unet, dict.fromkeys(names, 2))
    for name in names:
        set_factors(unet.get_submodule(name), read[name], factors(read[name](), 2, 8))
    for runtime in ("reference", "onednn"):
        pair = paired(tiny_pipe.unet, runtime, unet)
        pair.attach(random_lora(pair.exact, strength=1.0, layers=lambda name: name in names))
        pair.assert_close()


def test_threads_share_an_adapted_denoiser(onednn: Pair) -> None:
    attach(onednn.ours, random_lora(onednn.exact, strength=0.5))
    expected, results = call(onednn.ours), list[Tensor]()
    threads = [threading.Thread(target=lambda: results.append(call(onednn.ours))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(torch.equal(result, expected) for result in results)


def test_a_class_that_loads_no_adapters_gains_no_methods() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, sample: Tensor, timestep: float) -> Tensor:
            return self.layer(sample)  # type: ignore[no-any-return]

    denoiser = Plain()
    lower(denoiser, Choice(ReferenceRuntime(), "for this test"), quantized_layers(denoiser))
    assert not hasattr(denoiser, "load_lora_adapter")


def test_the_denoiser_stays_one_of_diffusers(onednn: Pair) -> None:
    assert isinstance(onednn.ours, UNet2DConditionModel)
    assert type(onednn.ours).__name__ == "UNet2DConditionModel"
