"""Pipelines of unusual ways: other units of time, several calls per step, fewer of them, pictures to start from."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from diffusers import StableDiffusionPipeline

import bitbrush
from bitbrush import Quantization
from bitbrush.bench.images.generation import generate
from bitbrush.network.families import UnknownDenoiserError
from bitbrush.timeline.trajectory import prompt_batches
from tests.artifact.pipelines import CASES, PROMPTS, UNKNOWN, generated, picture, pipeline, quantized


def relaxed(quantization: Quantization) -> set[float]:
    (layer,) = (layer for layer in quantization.outcome.layers if layer.name == "transformer_blocks.0.attn.to_q")
    schedule = layer.activations
    return {t for t, qparams in zip(schedule.timesteps, schedule.qparams, strict=True) if qparams.bits == 10}


@pytest.mark.parametrize(("name", "first"), [("sd3", 1000.0), ("flux-dev", 1.0)])
def test_relaxing_knows_the_units_of_the_denoiser(name: str, first: float) -> None:
    case = CASES[name]
    keys = {"rounding": "nearest", "steps": 4}
    last = quantized(case, pipeline(case), **keys, relax="0.75:1@10")
    assert last.outcome.planned[0] == first
    assert relaxed(last) == {last.outcome.planned[-1]}
    assert last.average_activation_bits == 8.5
    beginning = quantized(case, pipeline(case), **keys, relax="0:0.25@10")
    assert relaxed(beginning) == {first}


def test_two_calls_per_step() -> None:
    """FLUX with true guidance calls its transformer for the prompt, and again for the negative prompt."""
    case, inputs = CASES["flux-dev"], {"negative_prompt": ["blue", "red"]}
    pipe = pipeline(case)
    calls: list[None] = []
    pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(None))
    arguments = {**case.keys["pipeline_arguments"], "true_cfg_scale": 2.0}
    recipe = bitbrush.METHODS["pcr"].recipe(
        {**case.keys, "pipeline_arguments": arguments, "steps": 3, "num_prompts": 2}
    )
    quantization = bitbrush.quantize(pipe, recipe, PROMPTS, inputs=inputs)
    assert quantization.costs["recording"].denoiser_calls_per_batch == 6
    assert quantization.costs["progressive_calibration"].denoiser_calls_per_batch == 12
    batch = prompt_batches(("a green tree",), 1, 1, inputs=inputs)
    images = generate(quantization.pipeline(), batch, recipe.plan)
    assert images.steps.shape[1] == 3
    assert np.isfinite(images.latents).all()


def test_calls_that_skip_blocks() -> None:
    """Stable Diffusion 3.5's guidance by skipped layers: a further call on some steps, through fewer blocks."""
    case = CASES["sd3"]
    guided = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    quantization = quantized(case, pipeline(case), steps=4, rounding="learned", pipeline_arguments=guided)
    assert quantization.costs["recording"].denoiser_calls_per_batch > 4
    assert np.isfinite(generated(case, quantization.pipeline(), quantization).latents).all()


def test_a_pipeline_that_ends_early() -> None:
    """SDXL's base model leaves the last steps to the refiner."""
    case = CASES["sdxl-turbo"]
    early = {"denoising_end": 0.5}
    keys = {"steps": 4, "guidance_scale": 5.0, "rounding": "nearest"}
    quantization = quantized(case, pipeline(case), pipeline_arguments=early, **keys)
    assert quantization.costs["progressive_calibration"].denoiser_calls_per_batch == 4
    assert {len(layer.activations.timesteps) for layer in quantization.outcome.layers} == {2}
    assert generated(case, quantization.pipeline(), quantization).steps.shape[1] == 2


class GuidedAtFirst(StableDiffusionPipeline):
    """Guidance for the first two calls only, by the means that diffusers' documentation names."""

    @functools.wraps(StableDiffusionPipeline.__call__)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        def stop_guidance(pipe: Any, step: int, _: Any, values: dict[str, Any]) -> dict[str, Any]:
            if step == 1:
                pipe._guidance_scale = 0.0
                values["prompt_embeds"] = values["prompt_embeds"].chunk(2)[1]
            return values

        changed = ["latents", "prompt_embeds"]
        return super().__call__(
            *args, callback_on_step_end=stop_guidance, callback_on_step_end_tensor_inputs=changed, **kwargs
        )


def test_guidance_on_some_steps_only(tiny_pipe: StableDiffusionPipeline) -> None:
    """A batch of twice the prompts while guided, of the prompts alone afterwards."""
    pipe = GuidedAtFirst(**tiny_pipe.components, requires_safety_checker=False)
    rows: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    recipe = bitbrush.METHODS["pcr"].recipe({"steps": 5, "num_prompts": 2, "scheduler": "ddim"})
    quantization = bitbrush.quantize(pipe, recipe, PROMPTS)
    assert rows[:5] == [4, 4, 2, 2, 2]
    images = quantization.pipeline()("a cat", num_inference_steps=5, output_type="np").images
    assert np.isfinite(images).all()


@pytest.mark.parametrize("target", ["StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"])
def test_a_text_to_image_artifact_serves_other_pipelines(target: str, saved: Path) -> None:
    loaded = bitbrush.load(saved)
    pipe = getattr(diffusers, target)(**loaded.components, requires_safety_checker=False)
    pictures = {"image": picture(0)} | ({"mask_image": picture(0, "mask_image")} if "Inpaint" in target else {})
    images = pipe("a cat", **pictures, strength=0.5, num_inference_steps=7, output_type="np").images
    assert np.isfinite(images).all()
    assert images.shape == (1, 16, 16, 3)


@pytest.mark.parametrize("rounding", ["nearest", "learned"])
def test_generic_quantizes_what_is_unknown(rounding: str, tmp_path: Path) -> None:
    pipe = pipeline(UNKNOWN)
    with pytest.raises(UnknownDenoiserError, match=r"'transformer': 'AuraFlowTransformer2DModel'.* With --generic"):
        quantized(UNKNOWN, pipe)
    quantization = quantized(UNKNOWN, pipe, generic=True, rounding=rounding, relax="0:0.5@10")
    assert quantization.outcome.planned[0] == 1.0
    assert not any(spec.excluded for spec in quantization.outcome.specs)
    assert {spec.name for spec in quantization.outcome.specs if spec.high_precision} == {"pos_embed.proj", "proj_out"}
    bitbrush.save(quantization, tmp_path / "artifact", base_model="aura")
    assert bitbrush.read_manifest(tmp_path / "artifact")["denoiser"]["family"] == "generic"
    assert "--generic" in (tmp_path / "artifact" / "README.md").read_text(encoding="utf-8")
    images = generated(UNKNOWN, bitbrush.load(tmp_path / "artifact", runtime="reference"), quantization)
    assert np.array_equal(images.latents, generated(UNKNOWN, quantization.pipeline(), quantization).latents)


class TestRefusals:
    @pytest.mark.parametrize("name", ["sd-img2img", "sd-inpainting", "sdxl-refiner"])
    def test_pictures_that_are_missing(self, name: str) -> None:
        case = CASES[name]
        without: Mapping[str, Any] = {}
        recipe = bitbrush.METHODS["rtn"].recipe({"num_prompts": 2, **case.keys})
        names = " and ".join(case.pictures)
        with pytest.raises(ValueError, match=f"makes images from images; give {names}:"):
            bitbrush.quantize(pipeline(case), recipe, PROMPTS, inputs=without)

    def test_no_picture_at_all(self) -> None:
        recipe = bitbrush.METHODS["rtn"].recipe({"num_prompts": 2})
        with pytest.raises(ValueError, match="input 'image' of the pipeline has no value"):
            bitbrush.quantize(pipeline(CASES["sd-img2img"]), recipe, PROMPTS, inputs={"image": []})

    @pytest.mark.parametrize("argument", ["strength", "guidance_scale", "generator", "nothing"])
    def test_arguments_that_the_pipeline_or_the_plan_does_not_leave(self, argument: str) -> None:
        recipe = bitbrush.METHODS["rtn"].recipe({"num_prompts": 2, "pipeline_arguments": {argument: 0.5}})
        with pytest.raises(ValueError, match=f"StableDiffusionPipeline cannot be given '{argument}'; it takes height"):
            bitbrush.quantize(pipeline(CASES["sd1"]), recipe, PROMPTS)
