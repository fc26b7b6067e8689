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
    BlockRunner,
    Rows,
    as_rows,
    block_runners,
    called,
    next_block,
    reconstruction_blocks,
)
from bitbrush.session import offload as offloading
from bitbrush.session.offload import Offload, is_offloaded
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


def finish(network: nn.Module, runners: Iterable[BlockRunner]) -> None:
    """Answers every walk with what its blocks compute."""
    for runner in runners:
        while runner.request:
            with torch.no_grad():
                runner.answer(runner.request.run(network))


def forwards(network: nn.Module) -> dict[str, object]:
    return {name: module.__dict__.get("forward") for name, module in network.named_modules()}


def test_blocks_cover_all_layers_once_and_in_order(tiny_pipe: StableDiffusionPipeline) -> None:
    names = layer_names(tiny_pipe)
    blocks = reconstruction_blocks(tiny_pipe.unet, UNET, names)
    assert [layer for layers in blocks.values() for layer in layers] == names
    for block, layers in blocks.items():
        if block in UNET.blocks(tiny_pipe.unet):
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
    with block_runners(unet, blocks, calls) as runners:
        while waiting := [runner.request for runner in runners if runner.request]:
            stops.append([call.name for call in waiting])
            for runner, call in zip(runners, waiting, strict=True):
                with torch.no_grad():
                    runner.answer(call.run(unet))
    assert [len(set(names)) for names in stops] == [1] * len(blocks)
    assert sorted(names[0] for names in stops) == sorted(blocks)
    assert [len(x) for x in passes] == [2, 1, 3]
    assert all(torch.equal(runner.result[0], y) for runner, y in zip(runners, expected, strict=True))


def test_what_is_answered_is_what_goes_on(tiny_pipe: StableDiffusionPipeline) -> None:
    calls = denoiser_calls(2)
    with block_runners(tiny_pipe.unet, ["conv_out"], calls) as (runner,):
        assert runner.request is not None
        assert runner.request.args[0].shape == (2, 8, 8, 8)
        assert not runner.request.args[0].requires_grad
        answer = torch.full((2, 4, 8, 8), 7.0)
        runner.answer(answer)
        assert runner.result[0] is answer


def test_walks_nest(tiny_pipe: StableDiffusionPipeline) -> None:
    unet, calls = tiny_pipe.unet, denoiser_calls(1, 2)
    expected = [call.run(unet)[0] for call in calls]
    block = "down_blocks.0.resnets.0"
    layers = [f"{block}.conv1", f"{block}.conv2"]
    with block_runners(unet, [block], calls) as outer:
        waiting = [runner.request for runner in outer if runner.request]
        with block_runners(unet, layers, waiting) as inner:
            assert [runner.request.name for runner in inner if runner.request] == [layers[0]] * 2
            finish(unet, inner)
        for runner, done in zip(outer, inner, strict=True):
            runner.answer(done.result)
    assert all(torch.equal(runner.result[0], y) for runner, y in zip(outer, expected, strict=True))
    assert not any(forwards(unet).values())


@pytest.mark.parametrize("stop_after", [0, 1])
def test_forwards_are_restored_whatever_happens(tiny_pipe: StableDiffusionPipeline, stop_after: int) -> None:
    class Interrupted(Exception):
        pass

    def interrupt() -> None:
        with block_runners(unet, ["conv_in", "mid_block.resnets.0"], denoiser_calls(1, 1)) as runners:
            assert sum(forward is not None for forward in forwards(unet).values()) == 2
            for runner in runners[:stop_after]:
                assert runner.request is not None
                runner.answer(runner.request.run(unet))
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
        block_runners(unet, ["conv_in"], denoiser_calls(1, 1)) as runners,
        pytest.raises(RuntimeError, match="number of channels"),
    ):
        runners[0].answer(torch.zeros(1, 3, 8, 8))
    assert not any(forwards(unet).values())
    assert threading.active_count() == threads


def test_a_forward_set_on_the_module_is_put_back() -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    own = network[0].forward
    network[0].forward = own
    with block_runners(network, ["0"], [BlockCall("", (torch.ones(1, 2),), {})]) as runners:
        assert network[0].forward is not own
        finish(network, runners)
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


def test_texts_of_different_lengths_are_taken_by_kind() -> None:
    """Each kind keeps the values without rows of its own calls, here rotary embeddings of its length."""
    calls = [
        BlockCall("b", (torch.full((rows, length, 2), float(length)), torch.full((length, 4), float(length))), {})
        for rows, length in ((2, 3), (1, 7), (2, 3))
    ]
    inputs = BlockInputs.of(calls)
    parts = inputs.of_one_kind(torch.tensor([4, 2, 0]))
    assert [part.tolist() for part in parts] == [[4, 0], [2]]
    for part, length in zip(parts, (3, 7), strict=True):
        (x, rotary), _ = inputs.take(part)
        assert x.shape == (len(part), length, 2)
        assert rotary.shape == (length, 4)
        assert (x == length).all()
        assert (rotary == length).all()
    targets = Rows(tuple(call.args[0] for call in calls))
    assert [tuple(targets[part].shape) for part in parts] == [(2, 3, 2), (1, 7, 2)]


@pytest.mark.parametrize("away", [False, True])
def test_rows_are_those_of_one_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: bool) -> None:
    monkeypatch.setattr(offloading, "SMALLEST", 1)
    parts = tuple(torch.randn(n, 3, 2) for n in (2, 1, 4))
    joined, rows = torch.cat(parts), Rows(parts)
    if away:
        Offload(tmp_path).put(parts)
    assert len(rows) == 7
    picked = torch.tensor([6, 0, 2, 2])
    assert torch.equal(rows[picked], joined[picked])
    assert torch.equal(rows[1:5], joined[1:5])
    assert is_offloaded(parts[0]) == away


def test_what_waits_is_on_the_disk_and_comes_to_the_same(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offloading, "SMALLEST", 1)
    unet, calls = tiny_pipe.unet, denoiser_calls(2, 1)
    expected = [call.run(unet)[0] for call in calls]
    blocks = list(reconstruction_blocks(unet, UNET, layer_names(tiny_pipe)))
    with block_runners(unet, blocks, calls, Offload(tmp_path)) as runners:
        while stop := next_block(runners, blocks):
            for index in stop[1]:
                call = called(runners[index])
                assert all(is_offloaded(one) for one in call.args if isinstance(one, Tensor))
                with torch.no_grad():
                    runners[index].answer(call.run(unet))
    assert all(torch.equal(runner.result[0], y) for runner, y in zip(runners, expected, strict=True))
    assert all(is_offloaded(runner.result[0]) for runner in runners)


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
    with block_runners(network, ["a", "b", "c"], calls) as runners:
        while stop := next_block(runners, ["a", "b", "c"]):
            stops.append(stop)
            for index in stop[1]:
                runners[index].answer(called(runners[index]).run(network))
    assert stops == [("a", [0, 1]), ("b", [1, 2]), ("c", [0, 1, 2])]
