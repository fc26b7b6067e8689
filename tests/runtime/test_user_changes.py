"""What users do to the modules of a lowered denoiser, fused or not: the reference obeys it, and so does oneDNN."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate.hooks import add_hook_to_module, remove_hook_from_module
from diffusers import StableDiffusionPipeline
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import prune

from bitbrush.network.skip_inputs import with_split_skips
from bitbrush.network.unet import UNET
from bitbrush.runtime.onednn.runtime import OneDnnRuntime
from bitbrush.runtime.tools import best_tools
from bitbrush.timeline.tracker import TRACKER
from tests.runtime.changes import (
    BLOCK,
    CHANGES,
    CLOSE,
    RESNET,
    TRANSFORMER,
    UPSAMPLER,
    Half,
    Pair,
    Scaling,
    apart,
    at,
    call,
    fused,
    quantized_layers,
)

pytestmark = pytest.mark.usefixtures("exact_products")


@pytest.fixture(scope="module")
def _lowered(_one_tiny_pipe: StableDiffusionPipeline) -> Pair:
    pair = Pair(_one_tiny_pipe.unet, torch.float32)
    assert apart(call(pair.ours), call(pair.exact)) < CLOSE
    return pair


@pytest.fixture
def pair(_lowered: Pair) -> Pair:
    """A copy for the test to change: copying takes less time than lowering."""
    pair = copy.deepcopy(_lowered)
    assert fused(pair.ours) >= {RESNET, TRANSFORMER, BLOCK, UPSAMPLER}
    return pair


@pytest.mark.parametrize("name", list(CHANGES))
def test_a_change_has_the_effect_it_has_on_the_reference(name: str, pair: Pair) -> None:
    before = call(pair.exact)
    pair.change(CHANGES[name])
    expected = call(pair.exact)
    assert apart(expected, before) > 10 * CLOSE
    assert apart(call(pair.ours), expected) < CLOSE


def outputs(unet: nn.Module) -> list[tuple[str, Tensor]]:
    """Of every module that is called, in order, as a hook is given them."""
    seen: list[tuple[str, Tensor]] = []

    def note(name: str) -> Callable[..., None]:
        return lambda _, __, y: seen.append((name, y if isinstance(y, Tensor) else y[0]))

    handles = [module.register_forward_hook(note(name)) for name, module in unet.named_modules()]
    call(unet)
    for handle in handles:
        handle.remove()
    return seen


def test_hooks_of_all_modules_are_given_what_the_reference_gives_them(pair: Pair) -> None:
    ours, exact = outputs(pair.ours), outputs(pair.exact)
    assert [name for name, _ in ours] == [name for name, _ in exact]
    assert len(exact) > 100
    for (name, y), (_, expected) in zip(ours, exact, strict=True):
        assert y.shape == expected.shape, name
        assert apart(y, expected) < 2 * CLOSE, name  # nearer to where it was rounded


def test_a_hook_of_any_module_alone_changes_what_it_changes_on_the_reference(pair: Pair) -> None:
    def hook(_: nn.Module, __: Any, y: Any) -> Any:
        return 1.5 * y if isinstance(y, Tensor) else None

    for name in dict.fromkeys(name for name, _ in outputs(pair.exact) if name):
        handles = [unet.get_submodule(name).register_forward_hook(hook) for unet in (pair.exact, pair.ours)]
        assert apart(call(pair.ours), call(pair.exact)) < CLOSE, name
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("kind", [BasicTransformerBlock, ResnetBlock2D, nn.SiLU])
def test_a_class_whose_forward_is_replaced_is_obeyed(
    kind: type[nn.Module], pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = call(pair.exact)
    forward: Any = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, *args, **kwargs: 1.5 * forward(self, *args, **kwargs))
    expected = call(pair.exact)
    assert apart(expected, before) > 10 * CLOSE
    assert apart(call(pair.ours), expected) < CLOSE


def test_a_processor_class_whose_call_is_replaced_is_obeyed(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AttnProcessor2_0, "__call__", lambda _, attn, x, *__, **___: 2 * x)
    assert apart(call(pair.ours), call(pair.exact)) < CLOSE


def test_hooks_of_all_modules_of_the_process_see_every_module(pair: Pair) -> None:
    seen: dict[int, list[str]] = {}
    for unet in (pair.exact, pair.ours):
        names = {module: name for name, module in unet.named_modules()}
        called = seen.setdefault(id(unet), [])
        handle = register_module_forward_hook(
            lambda module, *_, names=names, called=called: called.append(names[module])
        )
        try:
            call(unet)
        finally:
            handle.remove()
    assert seen[id(pair.exact)] == seen[id(pair.ours)]
    assert fused(pair.ours) >= {RESNET, TRANSFORMER, BLOCK, UPSAMPLER}


MASK = torch.tensor([[1.0] * 4 + [0.0] * 3] * 2)


@pytest.mark.parametrize("arguments", [{"encoder_attention_mask": MASK}, {"cross_attention_kwargs": {"gain": 3.0}}])
def test_arguments_of_the_attention_are_obeyed(arguments: dict[str, Any], pair: Pair) -> None:
    class Gained:
        def __call__(self, attn: Any, x: Tensor, *args: Any, gain: float = 1.0, **kwargs: Any) -> Tensor:
            y: Tensor = gain * AttnProcessor2_0()(attn, x, *args, **kwargs)
            return y

    if "cross_attention_kwargs" in arguments:
        pair.change(lambda unet: unet.set_attn_processor(Gained()))
    before, expected = call(pair.exact), call(pair.exact, **arguments)
    assert apart(expected, before) > 10 * CLOSE
    assert apart(call(pair.ours, **arguments), expected) < CLOSE


@pytest.mark.parametrize("name", [TRANSFORMER, BLOCK])
@torch.no_grad()
def test_a_block_called_by_itself_takes_a_mask_of_pixels(name: str, pair: Pair) -> None:
    """A U-Net has no such mask that fits all of its blocks."""
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(2, 16, 4, 4, generator=generator), torch.randn(2, 7, 16, generator=generator)
    mask = torch.tensor([[1.0] * 10 + [0.0] * 6] * 2)
    if name == BLOCK:
        x, mask = x.flatten(2).transpose(1, 2), (1 - mask[:, None]) * -10000.0
    results = []
    for unet in (pair.exact, pair.ours):
        block = unet.get_submodule(name)
        for chosen in (None, mask):
            with TRACKER.at(500.0):
                options = {} if name == BLOCK else {"return_dict": False}
                y = block(x, encoder_hidden_states=text, attention_mask=chosen, **options)
            results.append(y if name == BLOCK else y[0])
    assert apart(results[1], results[0]) > 10 * CLOSE
    assert apart(results[3], results[1]) < CLOSE


def ip_adapter(unet: nn.Module) -> None:
    """Of random weights, by diffusers' own loading."""
    made: Any = unet
    attentions = [name.removesuffix(".processor") for name in made.attn_processors if "attn2" in name]
    heads: dict[str, Tensor] = {}
    for number, name in enumerate(attentions):
        width = unet.get_submodule(name).inner_dim
        heads |= {f"{2 * number + 1}.to_{part}_ip.weight": torch.randn(width, 16) for part in "kv"}
    projection = {"proj.weight": torch.randn(64, 8), "proj.bias": torch.zeros(64)}
    projection |= {"norm.weight": torch.ones(16), "norm.bias": torch.zeros(16)}
    made._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": heads}], low_cpu_mem_usage=False)


def image_prompt() -> dict[str, Any]:
    return {"added_cond_kwargs": {"image_embeds": [torch.ones(2, 1, 8)]}}


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, CLOSE), (torch.bfloat16, 0.02)])
def test_an_ip_adapter_gives_what_it_gives_on_the_reference(
    tiny_pipe: StableDiffusionPipeline, dtype: torch.dtype, bound: float
) -> None:
    """Its text is a tuple, its processors are modules, and their weights come in float32."""
    pair = Pair(tiny_pipe.unet, dtype)
    before, plain = call(pair.exact), call(pair.ours)
    pair.change(ip_adapter)
    expected = call(pair.exact, **image_prompt())
    assert apart(expected, before) > 5 * bound
    assert apart(call(pair.ours, **image_prompt()), expected) < bound
    for unet in (pair.exact, pair.ours):  # as pipe.unload_ip_adapter() does
        unet.encoder_hid_proj = None
        unet.config.encoder_hid_dim_type = None
        unet.set_attn_processor({name: AttnProcessor2_0() for name in unet.attn_processors})
    assert torch.equal(call(pair.ours), plain)
    assert fused(pair.ours) >= {RESNET, TRANSFORMER, BLOCK, UPSAMPLER}


@pytest.mark.parametrize("name", ["a layer", "a convolution", "a processor that is a module", "the last norm"])
def test_what_is_added_in_float32_computes_beside_bfloat16(name: str, tiny_pipe: StableDiffusionPipeline) -> None:
    pair = Pair(tiny_pipe.unet, torch.bfloat16)
    pair.change(CHANGES[name])
    assert apart(call(pair.ours), call(pair.exact)) < 0.02


def test_layers_that_are_not_quantized_stay_in_the_type_of_the_rest(tiny_pipe: StableDiffusionPipeline) -> None:
    """Loading an IP-Adapter casts the whole U-Net to the type of its first parameter."""
    unet = tiny_pipe.unet
    ours = copy.deepcopy(unet)
    layers = [layer for layer in quantized_layers(unet) if "time_embedding" not in layer.name]
    OneDnnRuntime(best_tools(), torch.bfloat16).lower(ours, layers)
    before = call(ours)
    ip_adapter(ours)
    ours.to(torch.float32)
    ours.encoder_hid_proj = None
    ours.config.encoder_hid_dim_type = None
    ours.set_attn_processor({name: AttnProcessor2_0() for name in ours.attn_processors})
    assert torch.equal(call(ours), before)


def test_a_change_that_is_taken_back_leaves_blocks_fused(pair: Pair) -> None:
    ours: Any = pair.ours
    before, blocks, processors = call(ours), fused(ours), dict(ours.attn_processors)
    handle = ours.get_submodule(f"{BLOCK}.ff").register_forward_hook(lambda *_: None)
    assert BLOCK not in fused(ours)
    handle.remove()
    conv = ours.get_submodule(f"{RESNET}.conv1")
    add_hook_to_module(conv, Scaling())
    assert RESNET not in fused(ours)
    remove_hook_from_module(conv)
    for processor in (Half(), AttnProcessor()):
        ours.set_attn_processor(processor)
        assert BLOCK not in fused(ours)
    ours.set_attn_processor(processors)
    assert fused(ours) == blocks
    ours.set_attn_processor(AttnProcessor2_0())  # another one, which has no state
    ours.train()
    ours.eval()
    assert fused(ours) == blocks
    assert torch.equal(call(ours), before)


def test_only_the_block_that_was_changed_is_computed_module_by_module(pair: Pair) -> None:
    blocks = fused(pair.ours)
    pair.ours.get_submodule(f"{BLOCK}.norm2").register_forward_hook(lambda *_: None)
    pair.ours.get_submodule(BLOCK).register_forward_hook(lambda *_: None)  # called in any case
    assert fused(pair.ours) == blocks - {BLOCK}


def test_the_first_change_is_logged_by_name(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    call(pair.ours)
    assert not caplog.records
    pair.ours.get_submodule(f"{RESNET}.conv2").register_forward_hook(lambda *_: None)
    pair.ours.set_attn_processor(Half())
    for _ in range(2):
        call(pair.ours)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "processor in down_blocks.1.attentions.0.transformer_blocks.0 was changed" in record.getMessage()


def test_what_needs_a_floating_point_weight_is_told_where_there_is_one(pair: Pair) -> None:
    layer = pair.ours.get_submodule(f"{BLOCK}.attn1.to_q")
    assert not hasattr(layer, "weight")
    with pytest.raises(AttributeError, match=r"IntegerLinear has integers.*runtime='reference'"):
        prune.l1_unstructured(layer, "weight", 0.5)
    prune.l1_unstructured(pair.exact.get_submodule(f"{BLOCK}.attn1.to_q"), "weight", 0.5)
    assert apart(call(pair.exact), call(pair.ours)) > CLOSE


def test_halves_of_a_split_convolution_have_hooks_and_layers_of_their_own(tiny_pipe: StableDiffusionPipeline) -> None:
    pair = Pair(with_split_skips(tiny_pipe.unet, UNET), torch.float32)
    before, seen = call(pair.exact), list[int]()
    assert RESNET in fused(pair.ours)
    handle = pair.ours.get_submodule(f"{RESNET}.conv1.skip").register_forward_hook(lambda *_: seen.append(1))
    assert apart(call(pair.ours), before) < CLOSE
    assert seen == [1]
    handle.remove()
    pair.change(at(f"{RESNET}.conv1", lambda split: setattr(split, "hidden", nn.Conv2d(16, 16, 3, padding=1))))
    expected = call(pair.exact)
    assert apart(expected, before) > 10 * CLOSE
    assert apart(call(pair.ours), expected) < CLOSE


def test_a_copy_is_changed_by_itself(pair: Pair) -> None:
    before, other = call(pair.ours), copy.deepcopy(pair.ours)
    assert fused(other) == fused(pair.ours)
    assert torch.equal(call(other), before)
    handle = at(f"{BLOCK}.attn1.to_q", lambda layer: layer.register_forward_hook(lambda _, __, y: 3 * y))(other)
    at(RESNET, lambda resnet: setattr(resnet, "nonlinearity", nn.Tanh()))(other)
    changed = call(other)
    assert apart(changed, before) > 10 * CLOSE
    assert fused(other) == fused(pair.ours) - {BLOCK, RESNET}
    assert torch.equal(call(pair.ours), before)
    handle.remove()
    assert fused(other) == fused(pair.ours) - {RESNET}
    assert apart(call(copy.deepcopy(other)), call(other)) == 0


def test_a_forward_that_does_not_call_the_denoiser_s_is_refused(pair: Pair) -> None:
    """Nobody would tell the layers which timestep runs."""
    for unet in (pair.exact, pair.ours):
        forward = type(unet).forward
        unet.forward = lambda *args, unet=unet, forward=forward, **kwargs: forward(unet, *args, **kwargs)
        with pytest.raises(RuntimeError, match="must call the one that it replaces"):
            call(unet)


def _write_bias(layer: nn.Module) -> None:
    with torch.no_grad():
        layer.bias.add_(torch.linspace(-9, 9, len(layer.bias)))


def _set_bias(layer: nn.Module) -> None:
    layer.bias = nn.Parameter(layer.bias.detach() + torch.linspace(-9, 9, len(layer.bias)), requires_grad=False)


@pytest.mark.parametrize("write", [_write_bias, _set_bias])
@pytest.mark.parametrize("name", [f"{RESNET}.conv1", f"{RESNET}.time_emb_proj", f"{BLOCK}.ff.net.2", "conv_in"])
def test_a_bias_that_is_changed_after_a_call_is_not_remembered(
    name: str, write: Callable[[nn.Module], None], pair: Pair
) -> None:
    before = call(pair.exact)
    call(pair.ours)  # at the same timestep: what is folded and remembered there is of the earlier bias
    pair.change(at(name, write))
    expected = call(pair.exact)
    assert apart(expected, before) > 10 * CLOSE
    assert apart(call(pair.ours), expected) < CLOSE


@pytest.mark.parametrize("name", [f"{RESNET}.norm1", f"{BLOCK}.norm1", f"{TRANSFORMER}.norm"])
def test_a_norm_may_lose_its_weights(name: str, pair: Pair) -> None:
    pair.change(at(name, lambda norm: nn.init.constant_(norm.weight, 0.3)))
    before, blocks = call(pair.exact), fused(pair.ours)
    kept = [dict(unet.get_submodule(name)._parameters) for unet in (pair.exact, pair.ours)]
    pair.change(at(name, lambda norm: norm._parameters.update(weight=None, bias=None)))
    expected = call(pair.exact)
    assert apart(expected, before) > 10 * CLOSE
    assert apart(call(pair.ours), expected) < CLOSE
    for unet, parameters in zip((pair.exact, pair.ours), kept, strict=True):
        unet.get_submodule(name)._parameters.update(parameters)
    assert fused(pair.ours) == blocks


@pytest.mark.parametrize("name", ["sample", "encoder_hidden_states"])
def test_a_gradient_is_refused_by_name_and_not_zero(name: str, pair: Pair) -> None:
    arguments = {"sample": torch.ones(1, 4, 8, 8), "encoder_hidden_states": torch.ones(1, 7, 16)}
    arguments[name].requires_grad_()
    for unet in (pair.exact, pair.ours):
        with pytest.raises(ValueError, match=f"^{name} requires a gradient.*full-precision pipeline"):
            unet(timestep=500, **arguments)
        with torch.no_grad():
            assert not unet(timestep=500, **arguments).sample.requires_grad


@pytest.mark.parametrize("key", ["padding_mode", "padding", "stride", "dilation", "groups", "weight"])
def test_setting_what_an_integer_layer_was_made_for_is_refused(key: str, pair: Pair) -> None:
    layer = pair.ours.get_submodule(f"{RESNET}.conv1")
    with pytest.raises(AttributeError, match=f"was made for one {key}.*runtime='reference'"):
        setattr(layer, key, "circular")
