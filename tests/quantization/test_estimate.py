"""What is told beforehand is what comes: denoiser calls to the last one, memory and disk about."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

import bitbrush
from bitbrush.quantization import estimate as estimates
from bitbrush.quantization.estimate import (
    estimate,
    require_memory,
    short_on_gpu,
)
from bitbrush.quantization.quantize import prepare
from bitbrush.quantization.trace import sample_bytes, trace_pipeline
from bitbrush.rounding.samples import record_samples
from bitbrush.session.live_memory import LiveMemory, tensor_bytes
from bitbrush.session.session import Session
from tests.artifact.pipelines import CASES, PROMPTS, pipeline

MANY = tuple(f"{number} red cats" for number in range(11))


def state_of(pipe: Any, prompts: tuple[str, ...] = PROMPTS, **keys: Any) -> Any:
    recipe = bitbrush.METHODS[keys.pop("method", "pcr")].recipe({"num_prompts": len(prompts), **keys})
    return prepare(pipe, recipe, prompts)


@pytest.mark.parametrize(
    "keys",
    [
        {"method": "pcr", "steps": 3},
        {"method": "pcr", "steps": 3, "batch_size": 1, "scheduler": "heun"},
        {"method": "pcr", "steps": 2, "rounding": "nearest", "guidance_scale": 1.0},
        {"method": "one-shot", "steps": 3, "scheduler": "euler"},
        {"method": "rtn", "steps": 2},
        {"method": "one-shot", "steps": 4, "relax": "auto:6", "weight_allocation": "measured"},
    ],
    ids=lambda keys: " ".join(map(str, keys.values())),
)
def test_denoiser_calls_are_those_of_the_manifest(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, keys: dict[str, Any]
) -> None:
    state = state_of(tiny_pipe, **keys)
    planned = estimate(state)
    made = bitbrush.quantize(tiny_pipe, state.recipe, PROMPTS)
    cost = bitbrush.read_manifest(bitbrush.save(made, tmp_path / "a", base_model="someone/tiny"))["cost"]
    expected = {phase: one["denoiser_calls_per_batch"] for phase, one in cost.items()}
    calls = {one.name: one.calls_per_batch for one in planned.stages}
    assert {name: calls.pop(name) for name in expected} == expected
    assert not any(calls.values())  # stages that make no calls are no phases
    assert planned.artifact == pytest.approx(
        sum(path.stat().st_size for path in (tmp_path / "a").rglob("*.safetensors")), rel=0.25
    )


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("sdxl-refiner", {}),
        ("sdxl-turbo", {"steps": 4, "guidance_scale": 5.0, "pipeline_arguments": {"denoising_end": 0.5}}),
        ("sd3", {"steps": 4, "pipeline_arguments": {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0}}),
        ("flux-dev", {"steps": 3, "pipeline_arguments": {"true_cfg_scale": 2.0, "negative_prompt": "blue"}}),
    ],
)
def test_calls_of_pipelines_with_ways_of_their_own(name: str, keys: dict[str, Any]) -> None:
    """From pictures, ended early, with a further call on some steps, with two calls on each."""
    case = CASES[name]
    pipe = pipeline(case)
    arguments = {**case.keys.get("pipeline_arguments", {}), **keys.get("pipeline_arguments", {})}
    keys = {"steps": 2, "num_prompts": 2, "batch_size": 1, **case.keys, **keys, "pipeline_arguments": arguments}
    recipe = bitbrush.METHODS["rtn"].recipe(keys)
    planned = estimate(prepare(pipe, recipe, PROMPTS, inputs=case.inputs))
    made = bitbrush.quantize(pipe, recipe, PROMPTS, inputs=case.inputs)
    assert (
        next(one for one in planned.stages if one.name == "observation").calls_per_batch
        == made.costs["observation"].denoiser_calls_per_batch
    )


def test_samples_are_those_recorded(tiny_pipe: StableDiffusionPipeline) -> None:
    state = state_of(tiny_pipe, MANY, steps=9)
    sizes = sample_bytes(state, trace_pipeline(state))
    recorded = record_samples(tiny_pipe, state.family, state.batches, state.recipe.plan, Session())
    assert len(sizes) * 2 == sum(call.args[0].shape[0] for call in recorded)  # two rows a prompt: guidance
    assert sum(sizes) == pytest.approx(sum(tensor_bytes((call.args, call.kwargs)) for call in recorded), rel=0.01)


def test_more_prompts_take_more_memory_and_steps_more_calls(tiny_pipe: StableDiffusionPipeline) -> None:
    few = estimate(state_of(tiny_pipe, steps=4))
    many = estimate(state_of(tiny_pipe, MANY, steps=8))
    for before, after in zip(few.stages, many.stages, strict=True):
        assert after.calls_per_batch >= before.calls_per_batch
    assert many.memory > few.memory


@pytest.mark.parametrize(
    "keys",
    [
        {"method": "rtn"},
        {"method": "pcr"},
        {"method": "qdiffusion", "rounding": "nearest"},
        {"method": "one-shot", "weight_allocation": "measured"},
    ],
    ids=lambda keys: " ".join(keys.values()),
)
def test_no_more_memory_is_taken_than_the_bound(tiny_pipe: StableDiffusionPipeline, keys: dict[str, Any]) -> None:
    """Counted from torch's own calls in this thread; threads of suspended calls hold little beside."""
    left_out = ["mid_block.*", "up_blocks.*"] if keys["method"] == "pcr" else []
    state = state_of(tiny_pipe, steps=2, exclude=left_out, **keys)
    bound = estimate(state).memory
    with LiveMemory() as memory:
        bitbrush.quantize(tiny_pipe, state.recipe, PROMPTS)
    assert memory.most <= bound


def test_rounded_before_no_weights_are_learned(tiny_pipe: StableDiffusionPipeline) -> None:
    rtn = bitbrush.METHODS["rtn"].recipe({"steps": 2, "num_prompts": 2})
    rounded = bitbrush.quantize(tiny_pipe, rtn, PROMPTS).rounded
    planned = estimate(prepare(tiny_pipe, rtn, PROMPTS, rounded=rounded))
    assert [one.name for one in planned.stages if one.calls_per_batch] == ["observation"]
    assert "rounding" not in {one.name for one in planned.stages}


def test_what_the_method_refuses_is_refused_before(tiny_pipe: StableDiffusionPipeline) -> None:
    with pytest.raises(ValueError, match="rtn has one range for all steps"):
        estimate(state_of(tiny_pipe, method="rtn", relax="0.5:1@10"))


def test_too_little_memory_is_refused(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = estimate(state_of(tiny_pipe, steps=3))
    require_memory(planned, tmp_path / "new")
    monkeypatch.setattr(estimates, "available_memory", lambda: planned.memory - 1)
    with pytest.raises(ValueError, match=r"takes up to \d+ MiB of memory beside what is loaded, \d+ MiB are available"):
        require_memory(planned, tmp_path / "new")
    monkeypatch.setattr(estimates, "available_memory", lambda: planned.memory)
    require_memory(planned, tmp_path / "new")


def test_samples_take_disk_when_memory_has_no_room_for_them(
    tiny_pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = state_of(tiny_pipe, steps=3)
    assert estimate(whole).offloaded == 0
    monkeypatch.setattr(estimates, "BUDGET_BYTES", 0)
    every = estimate(whole).offloaded
    monkeypatch.setattr(estimates, "BUDGET_BYTES", 1000)
    assert estimate(whole).offloaded == every - 1000 > 0


def test_a_card_with_little_memory_left_is_told_of(
    tiny_pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = estimate(state_of(tiny_pipe, steps=3))
    card = torch.device("cuda", 1)
    monkeypatch.setattr(estimates, "available_on_gpu", lambda _: planned.memory)
    assert short_on_gpu(planned, card) is None
    monkeypatch.setattr(estimates, "available_on_gpu", lambda _: planned.memory - 1)
    words = short_on_gpu(planned, card)
    assert words is not None
    assert re.search(r"takes up to \d+ MiB beside what is loaded, and \d+ MiB are left on cuda:1.*--device cpu", words)


def test_too_little_disk_is_refused(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = estimate(state_of(tiny_pipe, steps=3))
    monkeypatch.setattr(estimates, "available_disk", lambda _: max(planned.saving, planned.offloaded))
    with pytest.raises(ValueError, match=r"of disk.* for unfinished work beside it, \d+ [KMG]iB are free; make room"):
        require_memory(planned, tmp_path / "new")
    require_memory(planned, tmp_path / "new", journal_bytes=planned.work)
