"""Texts that accompany prompts, given by a recipe or on the command line, in pipelines of every kind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from diffusers import StableDiffusionPipeline
from typer.testing import CliRunner

import bitbrush
from bitbrush.bench.images.generation import generate
from bitbrush.cli import app
from bitbrush.timeline.plan import SamplingPlan
from bitbrush.timeline.trajectory import prompt_batches
from tests.artifact.pipelines import CASES, PROMPTS, pipeline

TEXTS = {
    "sd1": ["negative_prompt"],
    "sd-img2img": ["negative_prompt"],
    "sd-inpainting": ["negative_prompt"],
    "sdxl": ["negative_prompt", "negative_prompt_2", "prompt_2"],
    "sdxl-refiner": ["negative_prompt"],
    "pixart": ["negative_prompt"],
    "sd3": ["negative_prompt", "negative_prompt_3", "prompt_2", "prompt_3"],
    "flux-dev": ["negative_prompt", "prompt_2"],
}


def latents(name: str, arguments: dict[str, Any], batch_size: int) -> np.ndarray:
    case = CASES[name]
    keys = {**case.keys.get("pipeline_arguments", {}), **arguments}
    plan = bitbrush.Recipe().updated({"steps": 2, **case.keys, "guidance_scale": 3.0, "pipeline_arguments": keys}).plan
    pipe = pipeline(case)
    return generate(pipe, prompt_batches(PROMPTS, 0, batch_size, inputs=case.inputs), plan).latents


@pytest.mark.parametrize(("name", "argument"), [(name, one) for name, all_of in TEXTS.items() for one in all_of])
def test_one_text_serves_many_prompts_and_several_are_dealt_out(name: str, argument: str) -> None:
    further = {"flux-dev": {"true_cfg_scale": 2.0}, "sdxl": {"negative_prompt": "grey"}}.get(name, {})
    alone = latents(name, {**further, argument: "blue"}, 1)
    assert np.allclose(latents(name, {**further, argument: ["blue"]}, 2), alone, atol=1e-4)
    several = latents(name, {**further, argument: ["blue", "a red dog"]}, 1)
    assert np.array_equal(several[0], alone[0])
    assert not np.array_equal(several[1], alone[1])


@pytest.mark.parametrize("value", ["blurry", ["blurry"], ["blurry", "grey"]])
def test_a_recipe_for_a_pipeline_that_wants_one_negative_prompt_for_each(
    tiny_pipe: StableDiffusionPipeline, value: str | list[str]
) -> None:
    keys = {"steps": 2, "num_prompts": 3, "batch_size": 2, "pipeline_arguments": {"negative_prompt": value}}
    made = bitbrush.quantize(tiny_pipe, bitbrush.METHODS["rtn"].recipe(keys), [*PROMPTS, "a green owl"])
    seen: list[object] = []
    encode = tiny_pipe.encode_prompt

    def recording(*args: Any, **kwargs: Any) -> Any:
        seen.append(args[4])
        return encode(*args, **kwargs)

    tiny_pipe.encode_prompt = recording
    generate(tiny_pipe, prompt_batches(PROMPTS, 0, 2), made.recipe.plan)
    assert seen[-1] == (["blurry", "grey"] if "grey" in value else ["blurry", "blurry"])


@pytest.fixture
def run() -> Callable[..., Result]:
    def invoke(*arguments: object) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result

    return invoke


def test_every_command_takes_them(
    run: Callable[..., Result], tiny_pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    model, artifact, prompts = tmp_path / "model", tmp_path / "artifact", tmp_path / "prompts.txt"
    tiny_pipe.save_pretrained(model)
    prompts.write_text("a red cat\na blue dog\na green owl\n", encoding="utf-8")
    text, fast = ("--pipeline-argument", "negative_prompt=blurry"), ("--steps", 2, "--prompts", prompts)
    run("quantize", model, "-o", artifact, "--method", "rtn", "--num-prompts", 2, *fast, *text)
    assert bitbrush.read_manifest(artifact)["recipe"]["pipeline_arguments"] == {"negative_prompt": "blurry"}
    run("generate", artifact, "a cat", "a dog", "-o", tmp_path / "images")
    run("generate", model, "a cat", "a dog", "-o", tmp_path / "full", "--steps", 2, *text)
    grey = ("--pipeline-argument", 'negative_prompt=["grey", "black"]')
    compared = run("compare", model, artifact, "--prompts", prompts, "--num-prompts", 3, "--json", *grey)
    assert json.loads(compared.stdout)["protocol"]["arguments"] == {"negative_prompt": ["grey", "black"]}
    bench = ("--prompts", prompts, "--num-images", 3, "--clip", "emoji-clip", "--latents", 0)
    run("bench", model, artifact, "-o", tmp_path / "bench", *bench, *grey)
    run("recalibrate", artifact, "-o", tmp_path / "again", *fast, *grey)


def test_numbers_with_commas_reach_the_scheduler(
    run: Callable[..., Result], tiny_pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    tiny_pipe.save_pretrained(tmp_path / "model")
    sigmas = ("--scheduler", "euler", "--pipeline-argument", "sigmas=14,7,2")
    run("generate", tmp_path / "model", "a cat", "-o", tmp_path / "images", *sigmas)
    plan = SamplingPlan(3, 3.0, arguments=(("sigmas", (14, 7, 2)),))
    assert plan.arguments == bitbrush.Recipe().updated({"pipeline_arguments": ["sigmas=14,7,2"]}).plan.arguments
