"""What channels are observed to be is what the layers were given, whoever observes it."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from bitbrush.calibration.channels import observe_channels
from bitbrush.session.ranks import ALONE, Ranks
from bitbrush.session.session import Session
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import PromptBatch, carried, prompt_batches
from tests.thread_ranks import in_threads

PROMPTS = ("a red cat", "two blue dogs", "a green tree", "a house")
LAYER = "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"


def observed(pipe: Any, batches: Sequence[PromptBatch], ranks: Ranks = ALONE) -> tuple[Tensor, int]:
    session = Session(ranks=ranks)
    with carried(pipe, "unet", batches, SamplingPlan(steps=3)) as trajectories:
        extremes = observe_channels(pipe.unet, [LAYER], trajectories, session)
    return extremes[LAYER], session.costs.calls


def test_extremes_are_of_all_calls(tiny_pipe: StableDiffusionPipeline) -> None:
    inputs: list[Tensor] = []
    layer = tiny_pipe.unet.get_submodule(LAYER)
    hook = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    extremes, calls = observed(tiny_pipe, prompt_batches(PROMPTS, 0, 2))
    hook.remove()
    assert len(inputs) == 2 * calls == 8
    assert torch.equal(extremes, torch.cat(inputs).abs().flatten(0, 1).amax(0))


def test_processes_share_what_each_of_them_observed(tiny_pipe: StableDiffusionPipeline) -> None:
    batches = prompt_batches(PROMPTS, 0, 2)
    alone, _ = observed(tiny_pipe, batches)

    def share(ranks: Ranks) -> Tensor:
        own = copy.copy(tiny_pipe)
        own.unet = copy.deepcopy(tiny_pipe.unet)  # hooks are watched by their own thread alone
        return observed(own, ranks.share(batches), ranks)[0]

    one, other = in_threads(2, share)
    torch.testing.assert_close(one, alone)
    assert torch.equal(one, other)
