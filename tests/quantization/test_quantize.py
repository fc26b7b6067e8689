"""The main job's own decisions: what it refuses, and what the result knows."""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionPipeline

import bitbrush
from bitbrush import METHODS, Quantization
from bitbrush.methods.recipe import Recipe
from bitbrush.network.families import UnknownDenoiserError
from bitbrush.quantization.quantize import calibration_batches
from bitbrush.timeline.trajectory import planned_timesteps

PROMPTS = ("a red cat", "two blue dogs on the left")
RTN = METHODS["rtn"].recipe({"steps": 2, "num_prompts": 2})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"method": "magic"},
            "method is 'magic'; known are pcr, best, one-shot, ptq4dm, qdiffusion, smoothquant, dynamic, rtn, paper",
        ),
        ({"num_prompts": 3}, "num_prompts is 3, but only 2 calibration prompts are given; lower it or give more"),
        ({"scheduler": "dice"}, "scheduler is 'dice'; known are pndm, ddim"),
        ({"exclude": ["nothing*"]}, r"exclude pattern 'nothing\*' matches none"),
    ],
)
def test_refusals(tiny_pipe: StableDiffusionPipeline, keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bitbrush.quantize(tiny_pipe, RTN.updated(keys), PROMPTS)


def test_an_unknown_denoiser_is_refused(tiny_pipe: StableDiffusionPipeline) -> None:
    tiny_pipe.unet = None
    with pytest.raises(UnknownDenoiserError, match="has no denoiser of a known kind"):
        bitbrush.quantize(tiny_pipe, RTN, PROMPTS)


def test_what_float32_does_not_hold_is_refused(tiny_pipe: StableDiffusionPipeline) -> None:
    tiny_pipe.unet.conv_in.to(torch.float64)
    with pytest.raises(ValueError, match=r"unet holds torch\.float64; .* load it with bitbrush\.load_full_precision"):
        bitbrush.quantize(tiny_pipe, RTN, PROMPTS)


def test_damaged_weights_are_named(tiny_pipe: StableDiffusionPipeline) -> None:
    with torch.no_grad():
        tiny_pipe.unet.conv_out.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="1 of 288 weights of layer conv_out are NaN"):
        bitbrush.quantize(tiny_pipe, RTN, PROMPTS)


@pytest.mark.parametrize("kind", [list, tuple, deque, np.array, iter, lambda texts: (text for text in texts)])
def test_prompts_are_any_ordered_texts(kind: Callable[[Any], Any]) -> None:
    (batch,) = calibration_batches(RTN, kind([*PROMPTS, "one that is not used"]))
    assert batch.prompts == PROMPTS
    assert {type(prompt) for prompt in batch.prompts} == {str}


def test_too_few_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="only 1 calibration prompts"):
        calibration_batches(RTN, iter(["a"]))


def test_only_as_many_prompts_as_asked_for(tiny_pipe: StableDiffusionPipeline) -> None:
    more = bitbrush.quantize(tiny_pipe, RTN, (*PROMPTS, "a third", "a fourth"))
    exact = bitbrush.quantize(tiny_pipe, RTN, PROMPTS)
    for a, b in zip(more.outcome.layers, exact.outcome.layers, strict=True):
        assert a.activations == b.activations


def test_the_recipes_scheduler_plans_and_goes_along(quantization: Quantization) -> None:
    """What is calibrated for a scheduler is run with it, unless its user wants another."""
    assert isinstance(quantization.source.scheduler, DDIMScheduler)
    assert isinstance(quantization.pipeline().scheduler, DDIMScheduler)
    assert quantization.outcome.planned == planned_timesteps(quantization.source, "unet", quantization.recipe.plan)


def test_the_given_pipeline_keeps_its_scheduler(tiny_pipe: StableDiffusionPipeline) -> None:
    keys = {"rounding": "nearest", "steps": 2, "num_prompts": 1, "scheduler": "euler"}
    bitbrush.quantize(tiny_pipe, METHODS["pcr"].recipe(keys), PROMPTS)
    assert isinstance(tiny_pipe.scheduler, PNDMScheduler)


def test_average_bits_count_every_call(tiny_pipe: StableDiffusionPipeline) -> None:
    recipe = METHODS["one-shot"].recipe({"steps": 3, "num_prompts": 1, "relax": "0.3:0.6@12", "activations": 6})
    # PNDM visits the second timestep twice, and that is the relaxed one.
    assert bitbrush.quantize(tiny_pipe, recipe, PROMPTS).average_activation_bits == (6 + 12 + 12 + 6) / 4


def test_the_pipeline_shares_all_but_denoiser_and_scheduler(quantization: Quantization) -> None:
    pipe = quantization.pipeline()
    assert type(pipe) is type(quantization.source)
    for name, part in quantization.source.components.items():
        same = pipe.components[name] is part
        assert same == (name not in {"unet", "scheduler"}), name
    assert pipe.unet is not quantization.pipeline().unet


def rounded_anew(pipe: StableDiffusionPipeline, first: Quantization, recipe: Recipe) -> Quantization:
    return bitbrush.quantize(pipe, recipe, PROMPTS, rounded=first.rounded)


def test_weights_once_rounded_serve_other_activations(tiny_pipe: StableDiffusionPipeline) -> None:
    first = bitbrush.quantize(tiny_pipe, RTN, PROMPTS)
    fewer = RTN.updated({"activations": 6})
    reused, anew = rounded_anew(tiny_pipe, first, fewer), bitbrush.quantize(tiny_pipe, fewer, PROMPTS)
    assert "rounding" not in reused.costs
    assert "rounding" in anew.costs
    for a, b, c in zip(reused.outcome.layers, anew.outcome.layers, first.outcome.layers, strict=True):
        assert a.weight is c.weight
        assert torch.equal(a.weight.w_q, b.weight.w_q)
        assert a.activations == b.activations


def test_weights_of_other_layers_or_bits_are_refused(tiny_pipe: StableDiffusionPipeline) -> None:
    first = bitbrush.quantize(tiny_pipe, RTN, PROMPTS)
    with pytest.raises(ValueError, match=r"have 4 bits for layer time_embedding\.linear_1, the recipe has 3"):
        rounded_anew(tiny_pipe, first, RTN.updated({"weights": 3}))
    with pytest.raises(ValueError, match="have 8 bits for layer conv_out, the recipe has none"):
        rounded_anew(tiny_pipe, first, RTN.updated({"exclude": "conv_out"}))
    without = bitbrush.quantize(tiny_pipe, RTN.updated({"exclude": "conv_out"}), PROMPTS)
    with pytest.raises(ValueError, match="have no bits for layer conv_out, the recipe has 8"):
        rounded_anew(tiny_pipe, without, RTN)
