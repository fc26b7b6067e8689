"""What users do to modules on the GPU runtime: obeyed as on the reference, and no recorded graph runs meanwhile."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from bitbrush.runtime.cuda.engine import Replay
from bitbrush.runtime.cuda.runtime import CudaRuntime
from bitbrush.runtime.fused_forward import FusedForward
from bitbrush.runtime.reference import ReferenceRuntime
from tests.runtime.changes import Half, WithWeights, apart, overridden, quantized_layers
from tests.runtime.cuda.test_runtime import small_unet
from tests.runtime.test_user_changes import ip_adapter

CLOSE = 1e-3
BLOCK = "up_blocks.0.attentions.0.transformer_blocks.0"
RESNET = "up_blocks.0.resnets.0"
TEXT_WIDTH = 16


def call(unet: nn.Module, **arguments: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(1, 4, 4, 4, generator=generator), torch.randn(1, 3, TEXT_WIDTH, generator=generator)
    with torch.no_grad():
        y: Tensor = unet(x, torch.tensor(500.0), text, return_dict=False, **arguments)[0]
    return y


class Recorder:
    """Counts the graphs that it records and replays."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, run: Callable[[], Any]) -> Replay:
        self.recorded += 1

        def replay() -> Any:
            self.replayed += 1
            return run()

        return replay


def lowered(device: torch.device, dtype: torch.dtype = torch.float32) -> nn.Module:
    unet = small_unet(TEXT_WIDTH).eval()
    CudaRuntime(device, dtype).lower(unet, quantized_layers(unet))
    return unet


@pytest.fixture(scope="module")
def exact() -> nn.Module:
    unet = small_unet(TEXT_WIDTH).eval()
    ReferenceRuntime().lower(unet, quantized_layers(unet))
    return unet


def hook(unet: nn.Module) -> None:
    unet.get_submodule(f"{RESNET}.time_emb_proj").register_forward_hook(lambda _, __, y: 3 * y)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "processor": lambda unet: unet.set_attn_processor(Half()),
    "hook": hook,
    "pre-hook of a text's layer": lambda unet: unet.get_submodule(f"{BLOCK}.attn2.to_k").register_forward_pre_hook(
        lambda _, args: (-3 * args[0],)
    ),
    "forward": lambda unet: overridden(unet.get_submodule(f"{BLOCK}.ff.net.2")),
    "norm": lambda unet: setattr(unet, "conv_norm_out", nn.GroupNorm(1, 4)),
    "layer": lambda unet: setattr(unet.get_submodule(f"{BLOCK}.attn1"), "to_v", nn.Linear(4, 4)),
    "module as a processor": lambda unet: unet.get_submodule(f"{BLOCK}.attn1").set_processor(WithWeights(4)),
}


def test_changes_have_the_effect_they_have_on_the_reference(exact: nn.Module, device: torch.device) -> None:
    """All at once: an emulated call takes long. That each has an effect is seen on the reference."""
    changed, ours = copy.deepcopy(exact), lowered(device)
    for name, change in CHANGES.items():
        before = call(changed)
        for unet in (changed, ours):
            torch.manual_seed(0)
            change(unet)
        assert apart(call(changed), before) > 5 * CLOSE, name
    assert apart(call(ours), call(changed)) < CLOSE


def test_an_ip_adapter_gives_what_it_gives_on_the_reference(exact: nn.Module, device: torch.device) -> None:
    expected, ours = copy.deepcopy(exact), lowered(device, torch.bfloat16)
    image = {"added_cond_kwargs": {"image_embeds": [torch.ones(1, 1, 8)]}}
    for unet in (expected, ours):
        torch.manual_seed(0)
        ip_adapter(unet)
    assert apart(call(expected, **image), call(exact)) > 0.1
    assert apart(call(ours, **image), call(expected, **image)) < 0.03


class Small(nn.Module):
    """A denoiser of one quantized layer, and modules of no fused block around it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.layer, self.act = nn.LayerNorm(12), nn.Linear(12, 12), nn.SiLU()

    def forward(self, sample: Tensor, timestep: Tensor) -> tuple[Tensor]:
        return (self.act(self.layer(self.norm(sample))),)


@pytest.fixture
def recorded(device: torch.device) -> tuple[Any, Recorder, Callable[[], Tensor]]:
    """A denoiser whose second call was recorded, the recorder, and what calls it again."""
    denoiser, record = Small(), Recorder()
    CudaRuntime(device, torch.float32, record=record).lower(denoiser, quantized_layers(denoiser))
    x = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))

    def again() -> Tensor:
        with torch.no_grad():
            y: Tensor = denoiser(x, torch.tensor(500.0))[0]
        return y

    assert torch.equal(again(), again())
    assert (record.recorded, record.replayed) == (1, 1)
    return denoiser, record, again


CHANGES_OF_SMALL: dict[str, Callable[[Any], Any]] = {
    "forward hook": lambda denoiser: denoiser.layer.register_forward_hook(lambda _, __, y: 2 * y),
    "forward pre-hook": lambda denoiser: denoiser.act.register_forward_pre_hook(lambda _, args: (2 * args[0],)),
    "forward": lambda denoiser: overridden(denoiser.act),
    "act": lambda denoiser: setattr(denoiser, "act", nn.Tanh()),
    "layer": lambda denoiser: setattr(denoiser, "layer", nn.Linear(12, 12)),
    "weight": lambda denoiser: setattr(denoiser.norm, "weight", nn.Parameter(torch.full((12,), 2.0))),
    "inplace": lambda denoiser: setattr(denoiser.act, "inplace", True),
}


@pytest.mark.parametrize("name", list(CHANGES_OF_SMALL))
def test_a_changed_denoiser_is_not_replayed(
    name: str,
    recorded: tuple[Any, Recorder, Callable[[], Tensor]],
    device: torch.device,
    caplog: pytest.LogCaptureFixture,
) -> None:
    denoiser, record, again = recorded
    before = again()
    replayed = record.replayed
    CHANGES_OF_SMALL[name](denoiser)
    denoiser.norm.to(device)
    assert (apart(again(), before) > 0.1) is (name != "inplace")
    again()
    assert (record.recorded, record.replayed) == (1, replayed)
    (message,) = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert name in message
    assert "kernel by kernel" in message


def test_a_change_that_is_taken_back_is_replayed(recorded: tuple[Any, Recorder, Callable[[], Tensor]]) -> None:
    denoiser, record, again = recorded
    first, seen = again(), list[int]()
    for register in (denoiser.layer.register_forward_hook, register_module_forward_hook):
        handle = register(lambda *_: seen.append(1))
        called = len(seen)
        assert torch.equal(again(), first)
        assert len(seen) > called
        handle.remove()
        replayed = record.replayed
        assert torch.equal(again(), first)
        assert (record.recorded, record.replayed) == (1, replayed + 1)


def test_a_graph_of_parameters_that_were_moved_is_recorded_anew(
    recorded: tuple[Any, Recorder, Callable[[], Tensor]],
) -> None:
    denoiser, record, again = recorded
    first = again()
    denoiser.norm.weight.data = 2 * denoiser.norm.weight.data
    doubled = again()
    assert apart(doubled, first) > 0.1
    assert record.recorded == 1
    assert torch.equal(again(), doubled)
    assert record.recorded == 2


@torch.no_grad()
def test_a_layer_that_runs_outside_of_a_call_is_refused(
    recorded: tuple[Any, Recorder, Callable[[], Tensor]],
) -> None:
    """The last call's step would be the wrong one."""
    denoiser, _, again = recorded
    with pytest.raises(RuntimeError, match="outside of its denoiser's call"):
        denoiser.layer(torch.ones(2, 12))
    forward = type(denoiser).forward
    denoiser.forward = lambda *args, **kwargs: forward(denoiser, *args, **kwargs)
    with pytest.raises(RuntimeError, match="must call the one that it replaces"):
        again()


def test_a_changed_denoiser_is_compiled_as_it_is(exact: nn.Module, device: torch.device) -> None:
    """What is a hook when it is traced is part of the graph, and blocks that were not changed stay fused."""
    ours, changed = lowered(device), copy.deepcopy(exact)
    for unet in (ours, changed):
        hook(unet)
    graphs: list[Any] = []

    def backend(module: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(module)
        return module.forward

    compiled = torch.compile(ours, backend=backend, fullgraph=True)
    y = call(compiled)
    assert apart(y, call(exact)) > 5 * CLOSE
    assert apart(y, call(changed)) < CLOSE
    assert len(graphs) == 1
    forwards = [vars(module).get("forward") for module in ours.modules()]
    assert [one.may_fuse() for one in forwards if isinstance(one, FusedForward)].count(False) == 1
