"""The denoiser's stand-in in a suspended call: the denoiser in all but its calls; what pipelines change about it."""

import copy
import functools
import inspect
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPAGPipeline, StableDiffusionPipeline, StableDiffusionSAGPipeline
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

import bitbrush
from bitbrush.timeline.module_changes import ChangeTracker
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import (
    call_arguments,
    carried,
    pending,
    planned_timesteps,
    prompt_batches,
    stand_in,
    start,
)
from tests.timeline.test_trajectory import advance, directly

PLAN = SamplingPlan(steps=3)
BATCHES = prompt_batches(("a red cat", "two blue dogs on the left", "a green tree"), 0, 2)


def of_kind(kind: type[Any], pipe: StableDiffusionPipeline, **further: Any) -> Any:
    names = inspect.signature(kind.__init__).parameters.keys() & pipe.components.keys()
    made = kind(**{name: pipe.components[name] for name in names}, requires_safety_checker=False, **further)
    made.set_progress_bar_config(disable=True)
    return made


class Switching(StableDiffusionPipeline):
    """Halves what the middle block adds, and registers a hook, in every second step; restores nothing."""

    @functools.wraps(StableDiffusionPipeline.__call__)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        layer, calls = self.unet.mid_block.resnets[0], []

        def switch(_: Any, step: int, __: Any, values: dict[str, Any]) -> dict[str, Any]:
            layer.output_scale_factor = 4.0 if step % 2 else 0.5
            if step == 0:
                self.unet.conv_out.register_forward_hook(lambda _, __, output: (calls.append(output), output * 0.9)[1])
            return values

        result = super().__call__(*args, **kwargs, callback_on_step_end=switch)
        assert len(calls) == len(self.scheduler.timesteps) - 1
        return result


def pag(pipe: StableDiffusionPipeline) -> Any:
    return of_kind(StableDiffusionPAGPipeline, pipe, pag_applied_layers=["mid", "up"])


def sag(pipe: StableDiffusionPipeline) -> Any:
    made = of_kind(StableDiffusionSAGPipeline, pipe)
    made.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    return made


def switching(pipe: StableDiffusionPipeline) -> Any:
    return of_kind(Switching, pipe)


PIPELINES = pytest.mark.parametrize("make", [pag, sag, switching], ids=["perturbed", "self-attention", "switching"])


def state(network: nn.Module) -> dict[str, dict[str, Any]]:
    return {
        name: {key: list(value) if isinstance(value, dict) else value for key, value in vars(module).items()}
        for name, module in network.named_modules()
    }


@pytest.fixture
def seen(tiny_pipe: StableDiffusionPipeline) -> nn.Module:
    return stand_in(tiny_pipe.unet, lambda *args, **kwargs: (args, kwargs))


def test_it_shows_all_that_the_denoiser_has(tiny_pipe: StableDiffusionPipeline, seen: nn.Module) -> None:
    unet: Any = tiny_pipe.unet
    shown: Any = seen
    assert isinstance(shown, type(unet))
    assert repr(shown) == repr(unet)
    for walk in ("modules", "parameters", "buffers", "children"):
        assert [id(one) for one in getattr(shown, walk)() if one is not shown] == [
            id(one) for one in getattr(unet, walk)() if one is not unet
        ]
    for walk in ("named_modules", "named_parameters", "named_buffers", "named_children"):
        assert [name for name, _ in getattr(shown, walk)()] == [name for name, _ in getattr(unet, walk)()]
    assert shown.get_submodule("mid_block.attentions.0") is unet.mid_block.attentions[0]
    assert shown.get_parameter("conv_in.weight") is unet.conv_in.weight
    assert shown.state_dict().keys() == unet.state_dict().keys()
    assert all(torch.equal(one, unet.state_dict()[name]) for name, one in shown.state_dict().items())
    assert (shown.dtype, shown.device, shown.config, shown.training) == (
        unet.dtype,
        unet.device,
        unet.config,
        unet.training,
    )
    assert shown.attn_processors == unet.attn_processors
    assert shown.num_parameters() == unet.num_parameters()
    assert shown.get_memory_footprint() == unet.get_memory_footprint()
    assert shown.add_embedding is None if hasattr(unet, "add_embedding") else not hasattr(shown, "add_embedding")
    assert inspect.signature(shown.forward) == inspect.signature(unet.forward)


def test_what_is_set_on_one_is_set_on_both(tiny_pipe: StableDiffusionPipeline, seen: nn.Module) -> None:
    tiny_pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    shown: Any = seen
    assert shown.up_blocks[0].s1 == 0.9
    shown.disable_freeu()
    assert tiny_pipe.unet.up_blocks[0].s1 is None
    shown.mark = "here"
    assert tiny_pipe.unet.mark == "here"


def test_only_calls_are_its_own(tiny_pipe: StableDiffusionPipeline, seen: nn.Module) -> None:
    hooked: list[None] = []
    tiny_pipe.unet.register_forward_pre_hook(lambda *_: hooked.append(None))
    assert seen(1, a=2) == ((1,), {"a": 2})
    assert seen.forward(3) == ((3,), {})
    assert not hooked  # they run when the call is answered
    assert tiny_pipe.unet(torch.ones(1, 4, 8, 8), torch.tensor(1), torch.ones(1, 5, 16))[0].shape == (1, 4, 8, 8)
    assert hooked == [None]


@PIPELINES
def test_pipelines_that_change_modules_come_to_their_own_latents(make: Any, tiny_pipe: StableDiffusionPipeline) -> None:
    """Every batch has its changes for its own calls alone, to the last."""
    expected = [directly(make(copy.deepcopy(tiny_pipe)), batch, PLAN) for batch in BATCHES]
    pipe = make(tiny_pipe)
    before = state(pipe.unet)
    for latents, wanted in zip(advance(pipe, BATCHES, PLAN), expected, strict=True):
        assert torch.equal(latents, wanted)
    assert state(pipe.unet) == before


@PIPELINES
def test_a_call_that_ends_early_leaves_no_change(make: Any, tiny_pipe: StableDiffusionPipeline) -> None:
    pipe = make(tiny_pipe)
    before = state(pipe.unet)
    planned_timesteps(pipe, "unet", PLAN)
    assert state(pipe.unet) == before
    with carried(pipe, "unet", BATCHES, PLAN) as trajectories:
        trajectories[0].answer(pending(trajectories)[0].run(pipe.unet))
        assert state(pipe.unet) == before
        with torch.no_grad():  # an undisturbed call of the same network
            pipe.unet(torch.ones(1, 4, 8, 8), torch.tensor(1), torch.ones(1, 5, 16))
    assert state(pipe.unet) == before


def test_changes_are_made_to_whatever_network_answers(tiny_pipe: StableDiffusionPipeline) -> None:
    """Progressive calibration answers with another network of the same modules."""
    pipe, other = pag(tiny_pipe), copy.deepcopy(tiny_pipe.unet)
    with torch.no_grad():
        other.conv_out.weight *= 0.5
    expected = pag(copy.deepcopy(tiny_pipe))
    expected.unet = copy.deepcopy(other)
    wanted = directly(expected, BATCHES[0], PLAN)
    assert not torch.equal(wanted, directly(pipe, BATCHES[0], PLAN))
    with start(pipe, "unet", BATCHES[0], PLAN) as trajectory:
        while call := trajectory.request:
            trajectory.answer(call.run(other))
        assert torch.equal(trajectory.result, wanted)


def test_others_changes_are_left_where_they_are(tiny_pipe: StableDiffusionPipeline) -> None:
    """Hooks of an observer stand while a pipeline's code runs, and are none of its changes."""
    tracker = ChangeTracker(tiny_pipe.unet)
    tiny_pipe.unet.mark = 1
    mine = tracker.pause()
    assert not hasattr(tiny_pipe.unet, "mark")
    handle = tiny_pipe.unet.conv_in.register_forward_hook(lambda *_: None)
    tracker.resume(mine)
    assert tiny_pipe.unet.mark == 1
    assert tracker.pause().values == mine.values
    assert len(tiny_pipe.unet.conv_in._forward_hooks) == 1
    handle.remove()


def with_ip_adapter(pipe: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """An adapter of random weights on every cross-attention."""
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=16,
    )
    sides = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    pipe.register_modules(
        image_encoder=CLIPVisionModelWithProjection(config).eval(), feature_extractor=CLIPImageProcessor(**sides)
    )
    width, own = pipe.unet.config.cross_attention_dim, {}
    for number, name in enumerate(name for name in pipe.unet.attn_processors if "attn2" in name):
        inner = pipe.unet.get_submodule(name.removesuffix(".processor")).inner_dim
        own |= {f"{2 * number + 1}.to_{part}_ip.weight": torch.randn(inner, width) for part in "kv"}
    image = {"proj.weight": torch.randn(4 * width, 16), "proj.bias": torch.zeros(4 * width)}
    image |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    pipe.unet._load_ip_adapter_weights([{"image_proj": image, "ip_adapter": own}], low_cpu_mem_usage=False)
    pipe.set_ip_adapter_scale(0.5)
    return pipe


def test_an_ip_adapter_is_found(tiny_pipe: StableDiffusionPipeline) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = with_ip_adapter(tiny_pipe)
    (batch,) = prompt_batches(("a red cat",), 0, 1)
    red, blue = (
        SamplingPlan(2, arguments=(("ip_adapter_image", Image.new("RGB", (16, 16), colour)),))
        for colour in ("red", "blue")
    )
    found = [pipe(**call_arguments(pipe, batch, plan), output_type="latent").images for plan in (red, blue)]
    assert not torch.equal(*found)
    for plan, wanted in zip((red, blue), found, strict=True):
        assert torch.equal(advance(pipe, [batch], plan)[0], wanted)


@pytest.mark.parametrize("method", ["best", "one-shot", "pcr"])
def test_perturbed_attention_is_quantized(method: str, tiny_pipe: StableDiffusionPipeline) -> None:
    recipe = bitbrush.METHODS[method].recipe({"steps": 2, "num_prompts": 2, "batch_size": 1, "rounding": "nearest"})
    pipe = pag(tiny_pipe)
    before = state(pipe.unet)
    made = bitbrush.quantize(pipe, recipe, ("a red cat", "two blue dogs on the left"))
    assert state(pipe.unet) == before
    quantized = made.pipeline()
    perturbed, plain = (_latents(quantized, pag_scale=scale) for scale in (3.0, 0.0))
    assert perturbed.isfinite().all()
    assert not torch.equal(perturbed, plain)
    usual = _latents(pipe, pag_scale=3.0)
    assert (perturbed - usual).square().mean() < 0.1 * usual.square().mean()


def _latents(pipe: Any, **arguments: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latents: Tensor = pipe(
        "a cat", num_inference_steps=2, generator=generator, output_type="latent", **arguments
    ).images
    return latents


def test_a_walk_by_any_pipeline_of_diffusers_finds_the_same(tiny_pipe: StableDiffusionPipeline) -> None:
    """Whatever a method of the denoiser looks at, it looks at the denoiser's."""
    looked = (
        "attn_processors",
        "dtype",
        "device",
        "config",
        "num_parameters",
        "is_gradient_checkpointing",
    )
    seen_inside: list[dict[str, Any]] = []

    class Looking(StableDiffusionPipeline):
        @functools.wraps(StableDiffusionPipeline.__call__)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            values = {name: getattr(self.unet, name) for name in looked}
            seen_inside.append({name: value() if callable(value) else value for name, value in values.items()})
            return super().__call__(*args, **kwargs)

    pipe = of_kind(Looking, tiny_pipe)
    planned_timesteps(pipe, "unet", PLAN)
    values = {name: getattr(tiny_pipe.unet, name) for name in looked}
    assert seen_inside == [{name: value() if callable(value) else value for name, value in values.items()}]
