"""Other plans than the calibrated one: run as they are, or calibrated anew on the same integers."""

import copy
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

import bitbrush
from bitbrush import Quantization
from bitbrush.artifact.card import quantize_command
from bitbrush.artifact.store import WEIGHTS
from bitbrush.artifact.verification import artifact_digest
from bitbrush.calibration.relaxing import Relaxation
from bitbrush.sources.schedulers import with_scheduler
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.schedule import ActivationSchedule
from bitbrush.timeline.trajectory import planned_timesteps
from tests.artifact.pipelines import CASES, PROMPTS, pipeline, quantized

OTHER_PLANS = [("dpmpp_2m", 20), ("ddim", 25), ("euler", 13), ("unipc", 10), ("heun", 6), ("lcm", 4), ("euler_a", 7)]


def tensors_of(folder: Path, component: str = "unet") -> dict[str, torch.Tensor]:
    return load_file(folder / component / WEIGHTS)


@pytest.mark.parametrize(("scheduler", "steps"), OTHER_PLANS)
def test_any_plan_runs(saved: Path, scheduler: str, steps: int) -> None:
    pipe = with_scheduler(bitbrush.load(saved), scheduler)
    images = pipe("a red cat", num_inference_steps=steps, guidance_scale=7.5, output_type="np").images
    assert np.isfinite(images).all()


@pytest.fixture(scope="module", params=["0.8:1@10", "0:0.2@10"])
def relaxed_at_50_steps(
    request: pytest.FixtureRequest, _one_tiny_pipe: StableDiffusionPipeline
) -> tuple[Relaxation, ActivationSchedule]:
    """A layer's schedule; all layers' bits are alike."""
    keys = {"steps": 50, "relax": request.param, "num_prompts": 1, "exclude": ["*attn*", "*resnets*"]}
    made = bitbrush.quantize(copy.deepcopy(_one_tiny_pipe), bitbrush.METHODS["one-shot"].recipe(keys), PROMPTS)
    (layer,) = (layer for layer in made.outcome.layers if layer.name == "time_embedding.linear_1")
    return Relaxation.parse(request.param), layer.activations


@pytest.mark.parametrize(("scheduler", "steps"), OTHER_PLANS)
def test_relaxing_follows_the_noise_level(
    tiny_pipe: StableDiffusionPipeline,
    relaxed_at_50_steps: tuple[Relaxation, ActivationSchedule],
    scheduler: str,
    steps: int,
) -> None:
    """Of another plan those steps are relaxed that lie where the calibrated plan's relaxed ones do.

    Away from the border by half a step of the calibrated plan, where the nearest may be either.
    """
    relaxation, schedule = relaxed_at_50_steps
    relaxed = relaxation.timesteps(schedule.timesteps)
    low, high = (
        (-math.inf if relaxation.end == 1 else min(relaxed)),
        (max(relaxed) if relaxation.end == 1 else math.inf),
    )
    other = planned_timesteps(with_scheduler(tiny_pipe, scheduler), "unet", SamplingPlan(steps=steps))
    assert len(other) >= steps
    for timestep in other:
        if low + 10 < timestep < high - 10:
            assert schedule.at(timestep).bits == 10, timestep
        elif timestep < low - 10 or timestep > high + 10:
            assert schedule.at(timestep).bits == 8, timestep


def test_for_the_same_plan_it_is_the_same_artifact(quantization: Quantization, saved: Path, tmp_path: Path) -> None:
    """Bit for bit: progressive calibration sees nothing of the full-precision model."""
    again = bitbrush.recalibrate(saved, {}, PROMPTS)
    bitbrush.save(again, tmp_path / "again")
    ours, theirs = tensors_of(tmp_path / "again"), tensors_of(saved)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert "rounding" not in again.costs


@pytest.mark.parametrize("keys", [{"steps": 4, "scheduler": "dpmpp_2m"}, {"activations": 6, "relax": "none"}])
def test_for_another_plan_it_is_what_those_weights_calibrated_for_it_are(
    tiny_pipe: StableDiffusionPipeline, quantization: Quantization, saved: Path, tmp_path: Path, keys: dict[str, Any]
) -> None:
    made = bitbrush.recalibrate(saved, keys, PROMPTS)
    expected = bitbrush.quantize(tiny_pipe, quantization.recipe.updated(keys), PROMPTS, rounded=quantization.rounded)
    assert made.outcome.planned == expected.outcome.planned
    for a, b in zip(made.outcome.layers, expected.outcome.layers, strict=True):
        assert a.activations == b.activations
        assert torch.equal(a.weight.w_q, b.weight.w_q)

    bitbrush.save(made, tmp_path / "made")
    manifest, earlier = bitbrush.read_manifest(tmp_path / "made"), bitbrush.read_manifest(saved)
    for key in ("base_model", "base_model_digest", "layers"):
        assert manifest[key] == earlier[key]
    assert manifest["recalibrated_from"] == {"digest": artifact_digest(saved), "recipe": earlier["recipe"]}
    first, second = quantize_command(manifest).splitlines()
    assert first == quantize_command(earlier).replace("-o DIR", "-o DIR0")
    assert second.startswith("bitbrush recalibrate DIR0 -o DIR --")
    assert Counter(second.split())["--seed"] == 0
    images = bitbrush.load(tmp_path / "made")("a cat", num_inference_steps=2, output_type="np").images
    assert np.isfinite(images).all()


def test_a_transformer_is_recalibrated_too(tmp_path: Path) -> None:
    case = CASES["flux-dev"]
    made = quantized(case, pipeline(case), rounding="nearest")
    bitbrush.save(made, tmp_path / "a", base_model="flux")
    bitbrush.save(bitbrush.recalibrate(tmp_path / "a", {}, PROMPTS), tmp_path / "b")
    ours, theirs = tensors_of(tmp_path / "b", "transformer"), tensors_of(tmp_path / "a", "transformer")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("key", ["weights", "exclude", "rounding", "method", "weight_range"])
def test_what_the_weights_depend_on_stays(saved: Path, key: str) -> None:
    with pytest.raises(ValueError, match=f"{key} is not to be changed without rounding anew; recalibrate takes activa"):
        bitbrush.recalibrate(saved, {key: "x"}, PROMPTS)


def test_refusals(quantization: Quantization, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds DDIMScheduler, not the base model's own; name a scheduler"):
        bitbrush.recalibrate(saved, {"scheduler": "own"}, PROMPTS)
    with pytest.raises(ValueError, match="is no bitbrush artifact"):
        bitbrush.recalibrate(tmp_path, {}, PROMPTS)
    with pytest.raises(ValueError, match="base_model is needed"):
        bitbrush.save(quantization, tmp_path / "a")
