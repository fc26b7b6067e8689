"""Every method runs, repeats itself bit for bit, leaves the pipeline alone, and costs what it says."""

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

import bitbrush
from bitbrush.artifact.tensors import layer_tensors
from bitbrush.calibration.relaxing import MeasuredRelaxation, Relaxation
from bitbrush.methods import METHODS
from bitbrush.methods.method import Outcome
from bitbrush.methods.recipe import Recipe, Rounding
from bitbrush.rounding import adaround
from bitbrush.session.progress import Advance, silent
from tests.recorded_progress import RecordedProgress

PROMPTS = ("a red cat", "two blue dogs on the left", "a green tree", "a house")
SMALL = {"steps": 3, "num_prompts": 4, "batch_size": 2}


def recipe(method: str, **keys: Any) -> Recipe:
    return METHODS[method].recipe(SMALL | keys)


def tensors(outcome: Outcome) -> dict[str, torch.Tensor]:
    return {key: tensor for layer in outcome.layers for key, tensor in layer_tensors(layer).items()}


def image(pipe: StableDiffusionPipeline) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe("a cat", num_inference_steps=3, generator=generator, output_type="pt").images


@pytest.mark.parametrize("method", METHODS)
def test_runs_repeats_and_leaves_the_pipeline(tiny_pipe: StableDiffusionPipeline, method: str) -> None:
    before = copy.deepcopy(tiny_pipe.unet.state_dict())
    parts, full = dict(tiny_pipe.components), image(tiny_pipe)
    first, second = (bitbrush.quantize(tiny_pipe, recipe(method), PROMPTS) for _ in range(2))

    assert (first.source is tiny_pipe) == (method not in ("smoothquant", "qdiffusion"))
    assert all(tiny_pipe.components[name] is part for name, part in parts.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_pipe.unet.state_dict().items())
    assert not any(module._forward_pre_hooks for module in tiny_pipe.unet.modules())
    assert torch.equal(image(tiny_pipe), full)

    one, other = tensors(first.outcome), tensors(second.outcome)
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert [layer.name for layer in first.outcome.layers]
    assert {layer.name for layer in first.outcome.layers} == {spec.name for spec in first.outcome.specs}

    pictures = [image(quantization.pipeline()) for quantization in (first, second)]
    assert torch.equal(*pictures)
    assert not torch.equal(pictures[0], full)
    assert (pictures[0] - full).abs().mean() < 0.2
    assert torch.equal(image(tiny_pipe), full)


def test_another_seed_is_another_calibration(tiny_pipe: StableDiffusionPipeline) -> None:
    one, other = (
        tensors(bitbrush.quantize(tiny_pipe, recipe("one-shot", seed=seed), PROMPTS).outcome) for seed in (0, 1)
    )
    assert not torch.equal(one["conv_in.activation_scale"], other["conv_in.activation_scale"])
    assert torch.equal(one["conv_in.weight"], other["conv_in.weight"])


def test_schedules_are_those_of_the_method(tiny_pipe: StableDiffusionPipeline) -> None:
    outcomes = {
        name: bitbrush.quantize(tiny_pipe, recipe(name, relax=relax), PROMPTS).outcome
        for name, relax in [("pcr", "0.8:1@10"), ("one-shot", "0:0.3@9"), ("rtn", "none")]
    }
    planned = outcomes["pcr"].planned
    assert all(outcome.planned == planned for outcome in outcomes.values())
    distinct = tuple(sorted(set(planned), reverse=True))
    timesteps = {name: {layer.activations.timesteps for layer in o.layers} for name, o in outcomes.items()}
    assert timesteps == {"pcr": {distinct}, "one-shot": {distinct}, "rtn": {(0.0,)}}
    bits = {
        name: {
            tuple(qparams.bits for qparams in layer.activations.qparams)
            for layer in o.layers
            if "conv_" not in layer.name
        }
        for name, o in outcomes.items()
    }
    assert bits == {"pcr": {(8, 8, 10)}, "one-shot": {(9, 8, 8)}, "rtn": {(8,)}}


@pytest.mark.parametrize("rounding", list(Rounding))
@pytest.mark.parametrize("steps", [2, 5])
def test_costs_are_those_that_a_hook_counts(tiny_pipe: StableDiffusionPipeline, rounding: Rounding, steps: int) -> None:
    """PNDM makes T + 1 calls: progressive calibration at most 2 T + 2 per batch, never T squared."""
    running = ["outside"]
    calls: Counter[str] = Counter()

    @contextmanager
    def progress(phase: str, total: int) -> Iterator[Advance]:
        running.append(phase)
        with silent(phase, total) as advance:
            yield advance
        running.pop()

    # The hook travels along into copies of the denoiser.
    tiny_pipe.unet.register_forward_hook(lambda *_: calls.update([running[-1]]))
    keys = recipe("pcr", rounding=rounding, steps=steps)
    costs = bitbrush.quantize(tiny_pipe, keys, PROMPTS, progress=progress).costs
    batches = keys.num_prompts // keys.batch_size
    assert batches == 2
    assert costs["progressive_calibration"].denoiser_calls_per_batch == 2 * steps + 2
    expected = Counter({"calibrating": batches * (2 * steps + 2), "outside": 1})  # one prompt, to count products
    if rounding is not Rounding.NEAREST:
        assert list(costs) == ["recording", "rounding", "progressive_calibration"]
        assert costs["recording"].denoiser_calls_per_batch == steps + 1
        samples = -(-(steps + 1) // 4)
        expected += Counter({"recording samples": steps + 1, "learning rounding": 2 * samples})
    else:
        assert list(costs) == ["rounding", "progressive_calibration"]
    assert calls == expected
    assert costs["rounding"].denoiser_calls_per_batch == 0
    assert all(cost.seconds >= 0 and cost.peak_mib > 0 for cost in costs.values())


def test_one_shot_and_rtn_cost_one_call_per_step(tiny_pipe: StableDiffusionPipeline) -> None:
    calls: list[None] = []
    tiny_pipe.unet.register_forward_hook(lambda *_: calls.append(None))
    for method in ("one-shot", "rtn"):
        calls.clear()
        costs = bitbrush.quantize(tiny_pipe, recipe(method, steps=4), PROMPTS).costs
        assert costs["observation"].denoiser_calls_per_batch == 5
        assert len(calls) == 2 * 5 + 1  # one prompt, to count products


@pytest.mark.parametrize("method", ["rtn", "ptq4dm", "qdiffusion", "smoothquant"])
def test_methods_of_one_range_have_nothing_to_relax(tiny_pipe: StableDiffusionPipeline, method: str) -> None:
    with pytest.raises(ValueError, match=rf"relax is 0\.5:1@10, but {method} has one range for all steps; use pcr"):
        bitbrush.quantize(tiny_pipe, recipe(method, relax="0.5:1@10"), PROMPTS)


def test_ptq4dm_ranges_are_those_of_its_draws(tiny_pipe: StableDiffusionPipeline) -> None:
    """Its static range is that of the union of the drawn steps, each as often as drawn: unlike rtn's of all steps."""
    keys = {"rounding": "nearest", "activations": 6}
    made = {
        name: bitbrush.quantize(tiny_pipe, recipe(name, **keys), PROMPTS).outcome for name in ("ptq4dm", "one-shot")
    }
    static, stepwise = ({layer.name: layer.activations for layer in made[name].layers} for name in made)
    assert {len(schedule.timesteps) for schedule in static.values()} == {1}
    spans = [
        (static[name].qparams[0].scale, [qparams.scale for qparams in stepwise[name].qparams])
        for name in static
        if len({qparams.scale for qparams in stepwise[name].qparams}) > 1
    ]
    assert spans
    within = [min(steps) * 0.9 <= scale <= max(steps) * 1.1 for scale, steps in spans]
    assert sum(within) / len(within) > 0.9


def test_any_method_quantizes_a_smoothed_denoiser_that_computes_the_same(tiny_pipe: StableDiffusionPipeline) -> None:
    keys = {"rounding": "nearest", "activations": 5}
    plain, smoothed = (
        bitbrush.quantize(tiny_pipe, recipe("pcr", smoothing=name, **keys), PROMPTS) for name in ("none", "smoothquant")
    )
    assert plain.original is None
    assert smoothed.original is tiny_pipe
    torch.testing.assert_close(image(smoothed.source), image(tiny_pipe), rtol=1e-3, atol=1e-3)
    query = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert not torch.equal(smoothed.source.unet.get_parameter(query), tiny_pipe.unet.get_parameter(query))
    assert smoothed.costs["smoothing"].denoiser_calls_per_batch == 4
    assert "smoothing" not in plain.costs


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("activations", [4, 8, 15, 16])
def test_defaults_fit_every_number_of_activation_bits(method: str, activations: int) -> None:
    made = METHODS[method].recipe({"activations": activations, "weights": 5})
    assert (made.method, made.activations, made.weights) == (method, activations, 5)
    relaxed: dict[str, MeasuredRelaxation | Relaxation] = {"best": MeasuredRelaxation(min(activations + 0.4, 16.0))}
    if activations <= 14:
        relaxed |= dict.fromkeys(("pcr", "paper"), Relaxation(0.8, 1.0, activations + 2))
    assert made.relax == relaxed.get(method)
    assert METHODS[method].name == method


def test_paper_has_the_choices_of_its_authors() -> None:
    keys = METHODS["paper"].recipe().to_dict()
    assert keys["rounding"] == "adaround"
    assert keys["weight_range"] == keys["activation_range"] == "min-max"
    assert keys["relax"] == "0.8:1@10"
    assert keys["num_prompts"] == 10
    assert (adaround.BATCH_ROWS, adaround.RATE, adaround.OF_BLOCK, adaround.OF_LAYER) == (32, 1e-3, 0.01, 0.001)


def test_best_has_branches_where_activations_are_few() -> None:
    ranks = {bits: METHODS["best"].recipe({"activations": bits}).low_rank for bits in (4, 6, 8, 16)}
    assert ranks == {4: 16, 6: 16, 8: None, 16: None}


def test_bad_activation_bits_are_refused_before_defaults_are_made_of_them() -> None:
    with pytest.raises(ValueError, match="activations is '8'; it must be a whole number from 4 to 16"):
        METHODS["pcr"].recipe({"activations": "8"})


@pytest.mark.slow
def test_every_method_runs_on_the_bundled_pipeline() -> None:
    pipe = bitbrush.load_full_precision("emoji-sd")
    for method in METHODS:
        keys = METHODS[method].recipe({"steps": 2, "num_prompts": 2})
        picture = image(bitbrush.quantize(pipe, keys, PROMPTS).pipeline())
        assert picture.shape == (1, 3, 64, 64)
        assert picture.isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_what_is_planned_is_what_is_reported(name: str, tiny_pipe: StableDiffusionPipeline) -> None:
    """In that order, and in as many pieces; of what reports nothing nothing is planned."""
    progress = RecordedProgress()
    keys = METHODS[name].recipe({"steps": 2, "num_prompts": 2, "batch_size": 2})
    bitbrush.quantize(tiny_pipe, keys, PROMPTS, progress=progress)
    progress.require_as_planned()
