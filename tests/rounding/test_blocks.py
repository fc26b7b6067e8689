"""Denoiser calls suspended at every block: complete, in order, once, and without a trace afterwards."""

import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from bitbrush.network.layers import layer_specs
from bitbrush.network.unet import UNET
from bitbrush.rounding.blocks import (
    BlockCall,
    BlockInputs,
    Rows,
    Walk,
    as_rows,
    called,
    next_stop,
    reconstruction_blocks,
    walks,
)
from bitbrush.session import offload as spools
from bitbrush.session.offload import Spool, is_away
from bitbrush.timeline.trajectory import DenoiserCall


def denoiser_calls(*batch_sizes: int) -> list[DenoiserCall]:
    generator = torch.Generator().manual_seed(0)
    return [
        DenoiserCall(
            (torch.randn(n, 4, 8, 8, generator=generator), 10 * n),
            {"encoder_hidden_states": torch.randn(n, 5, 16, generator=generator), "return_dict": False},
            10.0 * n,
            (),
        )
        for n in batch_sizes
    ]


def layer_names(pipe: StableDiffusionPipeline) -> list[str]:
    return [spec.name for spec in layer_specs(pipe.unet, UNET, weight_bits=4)]


def finish(network: nn.Module, walking: Iterable[Walk]) -> None:
    """Answers every walk with what its blocks compute."""
    for walk in walking:
        while walk.request:
            with torch.no_grad():
                walk.answer(walk.request.run(network))


def forwards(network: nn.Module) -> dict[str, object]:
    return {name: module.__dict__.get("forward") for name, module in network.named_modules()}


def test_blocks_cover_all_layers_once_and_in_order(tiny_pipe: StableDiffusionPipeline) -> None:
    names = layer_names(tiny_pipe)
    blocks = reconstruction_blocks(tiny_pipe.unet, UNET, names)
    assert [layer for layers in blocks.values() for layer in layers] == names
    for block, layers in blocks.items():
        module = tiny_pipe.unet.get_submodule(block)
        if isinstance(module, UNET.block_classes):
            assert all(layer.startswith(f"{block}.") for layer in layers)
        else:
            assert layers == (block,)
    resnet = "down_blocks.0.resnets.0"
    assert blocks[resnet] == tuple(f"{resnet}.{layer}" for layer in ("conv1", "time_emb_proj", "conv2"))


def test_excluded_layers_belong_to_no_block(tiny_pipe: StableDiffusionPipeline) -> None:
    names = [name for name in layer_names(tiny_pipe) if "attn" not in name and name != "conv_in"]
    blocks = reconstruction_blocks(tiny_pipe.unet, UNET, names)
    assert [layer for layers in blocks.values() for layer in layers] == names
    assert "conv_in" not in blocks


def test_a_walk_stops_at_every_block_and_ends_with_the_output(tiny_pipe: StableDiffusionPipeline) -> None:
    unet, calls = tiny_pipe.unet, denoiser_calls(2, 1, 3)
    expected = [call.run(unet)[0] for call in calls]
    blocks = list(reconstruction_blocks(unet, UNET, layer_names(tiny_pipe)))
    passes: list[Tensor] = []
    unet.register_forward_pre_hook(lambda _, args: passes.append(args[0]))
    stops: list[list[str]] = []
    with walks(unet, blocks, calls) as walking:
        while waiting := [walk.request for walk in walking if walk.request]:
            stops.append([call.name for call in waiting])
            for walk, call in zip(walking, waiting, strict=True):
                with torch.no_grad():
                    walk.answer(call.run(unet))
    assert [len(set(names)) for names in stops] == [1] * len(blocks)
    assert sorted(names[0] for names in stops) == sorted(blocks)
    assert [len(x) for x in passes] == [2, 1, 3]
    assert all(torch.equal(walk.result[0], y) for walk, y in zip(walking, expected, strict=True))


def test_what_is_answered_is_what_goes_on(tiny_pipe: StableDiffusionPipeline) -> None:
    calls = denoiser_calls(2)
    with walks(tiny_pipe.unet, ["conv_out"], calls) as (walk,):
        assert walk.request is not None
        assert walk.request.args[0].shape == (2, 8, 8, 8)
        assert not walk.request.args[0].requires_grad
        answer = torch.full((2, 4, 8, 8), 7.0)
        walk.answer(answer)
        assert walk.result[0] is answer


def test_walks_nest(tiny_pipe: StableDiffusionPipeline) -> None:
    unet, calls = tiny_pipe.unet, denoiser_calls(1, 2)
    expected = [call.run(unet)[0] for call in calls]
    block = "down_blocks.0.resnets.0"
    layers = [f"{block}.conv1", f"{block}.conv2"]
    with walks(unet, [block], calls) as outer:
        waiting = [walk.request for walk in outer if walk.request]
        with walks(unet, layers, waiting) as inner:
            assert [walk.request.name for walk in inner if walk.request] == [layers[0]] * 2
            finish(unet, inner)
        for walk, done in zip(outer, inner, strict=True):
            walk.answer(done.result)
    assert all(torch.equal(walk.result[0], y) for walk, y in zip(outer, expected, strict=True))
    assert not any(forwards(unet).values())


@pytest.mark.parametrize("stop_after", [0, 1])
def test_forwards_are_restored_whatever_happens(tiny_pipe: StableDiffusionPipeline, stop_after: int) -> None:
    class Interrupted(Exception):
        pass

    def interrupt() -> None:
        with walks(unet, ["conv_in", "mid_block.resnets.0"], denoiser_calls(1, 1)) as walking:
            assert sum(forward is not None for forward in forwards(unet).values()) == 2
            for walk in walking[:stop_after]:
                assert walk.request is not None
                walk.answer(walk.request.run(unet))
            raise Interrupted

    unet = tiny_pipe.unet
    threads = threading.active_count()
    with pytest.raises(Interrupted):
        interrupt()
    assert not any(forwards(unet).values())
    assert threading.active_count() == threads


def test_what_fails_inside_is_raised_here_and_restored(tiny_pipe: StableDiffusionPipeline) -> None:
    unet = tiny_pipe.unet
    threads = threading.active_count()
    with (
        walks(unet, ["conv_in"], denoiser_calls(1, 1)) as walking,
        pytest.raises(RuntimeError, match="number of channels"),
    ):
        walking[0].answer(torch.zeros(1, 3, 8, 8))
    assert not any(forwards(unet).values())
    assert threading.active_count() == threads


def test_a_forward_set_on_the_module_is_put_back() -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    own = network[0].forward
    network[0].forward = own
    with walks(network, ["0"], [BlockCall("", (torch.ones(1, 2),), {})]) as walking:
        assert network[0].forward is not own
        finish(network, walking)
    assert network[0].forward is own


def test_inputs_of_many_calls_are_joined_by_row() -> None:
    first, second = torch.arange(6.0).view(3, 2), torch.arange(6.0, 8.0).view(1, 2)
    calls = [BlockCall("b", (x, None, "mode"), {"temb": 10 * x, "scale": 1.0}) for x in (first, second)]
    inputs = BlockInputs.of(calls)
    assert (inputs.name, inputs.rows) == ("b", 4)
    (x, nothing, mode), kwargs = inputs.take(torch.tensor([3, 0, 3]))
    assert x.tolist() == [[6.0, 7.0], [0.0, 1.0], [6.0, 7.0]]
    assert (nothing, mode, kwargs["scale"]) == (None, "mode", 1.0)
    assert torch.equal(kwargs["temb"], 10 * x)


@pytest.mark.parametrize("away", [False, True])
def test_rows_are_those_of_one_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: bool) -> None:
    monkeypatch.setattr(spools, "SMALLEST", 1)
    parts = tuple(torch.randn(n, 3, 2) for n in (2, 1, 4))
    joined, rows = torch.cat(parts), Rows(parts)
    if away:
        Spool(tmp_path).put_away(parts)
    assert len(rows) == 7
    picked = torch.tensor([6, 0, 2, 2])
    assert torch.equal(rows[picked], joined[picked])
    assert torch.equal(rows[1:5], joined[1:5])
    assert is_away(parts[0]) == away


def test_what_waits_is_on_the_disk_and_comes_to_the_same(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spools, "SMALLEST", 1)
    unet, calls = tiny_pipe.unet, denoiser_calls(2, 1)
    expected = [call.run(unet)[0] for call in calls]
    blocks = list(reconstruction_blocks(unet, UNET, layer_names(tiny_pipe)))
    with walks(unet, blocks, calls, Spool(tmp_path)) as walking:
        while stop := next_stop(walking, blocks):
            for index in stop[1]:
                call = called(walking[index])
                assert all(is_away(one) for one in call.args if isinstance(one, Tensor))
                with torch.no_grad():
                    walking[index].answer(call.run(unet))
    assert all(torch.equal(walk.result[0], y) for walk, y in zip(walking, expected, strict=True))
    assert all(is_away(walk.result[0]) for walk in walking)


def test_what_has_no_row_per_sample_is_the_same_for_all() -> None:
    rotary = (torch.ones(5, 2), torch.zeros(5, 2))
    mask = torch.ones(1, 4)
    calls = [
        BlockCall(
            "b", (), {"x": torch.full((n, 3), float(n)), "rotary": rotary, "mask": mask, "scale": torch.tensor(2.0)}
        )
        for n in (2, 3)
    ]
    inputs = BlockInputs.of(calls)
    assert inputs.rows == 5
    _, kwargs = inputs.take(torch.tensor([4, 0]))
    assert kwargs["x"].tolist() == [[3.0] * 3, [2.0] * 3]
    assert kwargs["rotary"] is rotary
    assert torch.equal(kwargs["mask"], mask)
    assert kwargs["scale"] == 2


def test_outputs_of_joint_blocks_become_one_row_per_sample() -> None:
    text, image = torch.arange(8.0).view(2, 2, 2), torch.arange(6.0).view(2, 3, 1)
    assert as_rows(image) is image
    rows = as_rows((text, image))
    assert rows.tolist() == [[0, 1, 2, 3, 0, 1, 2], [4, 5, 6, 7, 3, 4, 5]]
    assert as_rows((None, image)).tolist() == image.flatten(1).tolist()


def test_walks_that_skip_a_block_wait_for_the_others() -> None:
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Identity(), nn.Identity(), nn.Identity()

        def forward(self, x: Tensor, skipped: str) -> Tensor:
            for name in "abc":
                if name != skipped:
                    x = getattr(self, name)(x)
            return x

    network, stops = Skipping(), []
    calls = [DenoiserCall((torch.ones(1), skipped), {}, 0.0, ()) for skipped in ("b", "", "a")]
    with walks(network, ["a", "b", "c"], calls) as walking:
        while stop := next_stop(walking, ["a", "b", "c"]):
            stops.append(stop)
            for index in stop[1]:
                walking[index].answer(called(walking[index]).run(network))
    assert stops == [("a", [0, 1]), ("b", [1, 2]), ("c", [0, 1, 2])]
