"""What channels are observed to be is what the layers were given, whoever observes it."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from bitbrush.calibration.channels import TOKENS, Channels, observe_channels
from bitbrush.session.costs import CallCounter
from bitbrush.session.progress import silent
from bitbrush.session.ranks import ALONE, Ranks
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import PromptBatch, carried, prompt_batches
from tests.thread_ranks import in_threads

PROMPTS = ("a red cat", "two blue dogs", "a green tree", "a house")
LAYER = "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"


def observed(pipe: Any, batches: Sequence[PromptBatch], ranks: Ranks = ALONE) -> tuple[Channels, int]:
    calls = CallCounter()
    with carried(pipe, "unet", batches, SamplingPlan(steps=3)) as trajectories:
        found = observe_channels(pipe.unet, [LAYER], trajectories, silent, calls, kept_steps=(0, 2), ranks=ranks)
    return found[LAYER], calls.per_batch


def test_extremes_are_of_all_calls_and_samples_of_the_kept_steps(tiny_pipe: StableDiffusionPipeline) -> None:
    inputs: list[torch.Tensor] = []
    layer = tiny_pipe.unet.get_submodule(LAYER)
    hook = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    channels, calls = observed(tiny_pipe, prompt_batches(PROMPTS, 0, 2))
    hook.remove()
    assert len(inputs) == 2 * calls == 8
    assert torch.equal(channels.extremes, torch.cat(inputs).abs().flatten(0, 1).amax(0))
    assert [len(sample) for sample in channels.samples] == [2 * len(PROMPTS) * TOKENS] * 2
    for sample, step in zip(channels.samples, (0, 2), strict=True):
        given = torch.cat(inputs[2 * step : 2 * step + 2]).flatten(0, 1)
        assert all((given == token).all(1).any() for token in sample)


def test_processes_share_what_each_of_them_observed(tiny_pipe: StableDiffusionPipeline) -> None:
    batches = prompt_batches(PROMPTS, 0, 2)
    alone, _ = observed(tiny_pipe, batches)

    def share(ranks: Ranks) -> Channels:
        own = copy.copy(tiny_pipe)
        own.unet = copy.deepcopy(tiny_pipe.unet)  # hooks are watched by their own thread alone
        return observed(own, ranks.share(batches), ranks)[0]

    shares = in_threads(2, share)
    for one in shares:
        torch.testing.assert_close(one.extremes, alone.extremes)
        assert [len(sample) for sample in one.samples] == [len(sample) for sample in alone.samples]
        assert torch.equal(one.samples[0], shares[0].samples[0])
