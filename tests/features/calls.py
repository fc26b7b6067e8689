"""Rows: pipelines around the same denoiser, and arguments of calls."""

from typing import Any

import diffusers
import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image
from torch import Tensor

from tests.features.additions import around, controlnet, picture
from tests.features.models import call, full
from tests.features.row import Section

CALLS = Section("Pipelines and calls", "Each runs at sizes, steps and guidance that were not calibrated, too.")


def arguments(name: str, **given: Any) -> None:
    """Declares a row for arguments of a call."""
    options = {key: given.pop(key) for key in ("model", "tolerance", "emulated", "slow") if key in given}
    CALLS.row(name, **options)(lambda pipe: call(pipe, **given))


@CALLS.row("image-to-image around `pipe.components`")
def _image_to_image(pipe: Any) -> Tensor:
    return call(around("StableDiffusionImg2ImgPipeline", pipe), image=picture(pipe), strength=1.0)


@CALLS.row("inpainting around `pipe.components`", emulated=False)
def _inpainting(pipe: Any) -> Tensor:
    made = around("StableDiffusionInpaintPipeline", pipe)
    return call(made, image=picture(pipe), mask_image=picture(pipe, 0, "mask_image"))


@CALLS.row("image-to-image of SDXL", "sdxl", slow=True)
def _image_to_image_of_sdxl(pipe: Any) -> Tensor:
    return call(around("StableDiffusionXLImg2ImgPipeline", pipe), image=picture(pipe), strength=1.0)


@CALLS.row("image-to-image of Stable Diffusion 3", "sd3")
def _image_to_image_of_sd3(pipe: Any) -> Tensor:
    return call(around("StableDiffusion3Img2ImgPipeline", pipe), image=picture(pipe), strength=1.0)


@CALLS.row("inpainting of FLUX", "flux")
def _inpainting_of_flux(pipe: Any) -> Tensor:
    made = around("FluxInpaintPipeline", pipe)
    return call(made, image=picture(pipe), mask_image=picture(pipe, 0, "mask_image"), strength=1.0)


def converted(kind: Any, pipe: Any, **options: Any) -> Any:
    return kind.from_pipe(pipe, requires_safety_checker=False, **options)


@CALLS.row("`AutoPipelineForImage2Image.from_pipe`", emulated=False)
def _auto_image_to_image(pipe: Any) -> Tensor:
    return call(converted(AutoPipelineForImage2Image, pipe), image=picture(pipe), strength=1.0)


@CALLS.row("`AutoPipelineForInpainting.from_pipe`", emulated=False)
def _auto_inpainting(pipe: Any) -> Tensor:
    made = converted(AutoPipelineForInpainting, pipe)
    return call(made, image=picture(pipe), mask_image=picture(pipe, 0, "mask_image"))


@CALLS.row("`from_pipe(pipe, controlnet=...)`", emulated=False)
def _auto_controlnet(pipe: Any) -> Tensor:
    return call(converted(AutoPipelineForText2Image, pipe, controlnet=controlnet(pipe)), image=picture(pipe))


@CALLS.row("`from_pipe(pipe, enable_pag=True)`", emulated=False)
def _auto_pag(pipe: Any) -> Tensor:
    made = converted(AutoPipelineForText2Image, pipe, enable_pag=True, pag_applied_layers=["up"])
    return call(made, pag_scale=3.0)


@CALLS.row("SDXL: base and a refiner of the same networks, `denoising_end`, `denoising_start`", "sdxl", slow=True)
def _denoising_parts(pipe: Any) -> Tensor:
    half = call(pipe, denoising_end=0.5, num_inference_steps=4)
    return call(
        around("StableDiffusionXLImg2ImgPipeline", pipe), image=half, denoising_start=0.5, num_inference_steps=4
    )


def refining(pipe: Any, **given: Any) -> Tensor:
    return call(pipe, **{"image": picture(pipe), "strength": 1.0, **given})


@CALLS.row("SDXL: a refiner, `denoising_start` from the latents of a base", "sdxl-refiner", without=refining, slow=True)
def _refiner(pipe: Any) -> Tensor:
    half = call(full("sdxl"), denoising_end=0.5, num_inference_steps=4)
    return refining(pipe, image=half, denoising_start=0.5)


@CALLS.row("a refiner, other aesthetic scores", "sdxl-refiner", without=refining, slow=True)
def _scored(pipe: Any) -> Tensor:
    return refining(pipe, aesthetic_score=60.0, negative_aesthetic_score=20.0)


def brightening(_: Any, __: int, ___: Any, values: dict[str, Any]) -> dict[str, Any]:
    return {"latents": 1.2 * values["latents"]}


def interrupting(pipe: Any, step: int, _: Any, values: dict[str, Any]) -> dict[str, Any]:
    pipe._interrupt = step == 1
    return values


def ending_guidance(pipe: Any, step: int, _: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Drops the unconditional half of the batch after the first step."""
    if step > 0:
        return {}
    pipe._guidance_scale = 0.0
    return {"prompt_embeds": values["prompt_embeds"].chunk(2)[-1]}


arguments("`callback_on_step_end` that changes latents", callback_on_step_end=brightening)
arguments("`callback_on_step_end` that interrupts", callback_on_step_end=interrupting, emulated=False)
arguments(
    "`callback_on_step_end` that ends guidance",
    callback_on_step_end=ending_guidance,
    callback_on_step_end_tensor_inputs=["prompt_embeds"],
    guidance_scale=15.0,
    emulated=False,
)
arguments("`guidance_rescale`", guidance_scale=15.0, guidance_rescale=1.0, emulated=False)
arguments("other guidance", guidance_scale=20.0)
arguments("no guidance", guidance_scale=1.0)
arguments("`clip_skip`", model="sdxl", slow=True, clip_skip=1)
arguments("`negative_prompt`", negative_prompt="a large blurred photograph", guidance_scale=10.0)
arguments("`num_images_per_prompt`", num_images_per_prompt=2, emulated=False)
arguments("several prompts", prompt=["a cat", "a dog"], emulated=False)
arguments("larger images, of another shape", height=32, width=24, emulated=False)
arguments("smaller images", height=8, width=8, emulated=False)
arguments("more steps than calibrated", num_inference_steps=7, emulated=False)
arguments("`sigmas` of FLUX", model="flux", sigmas=[1.0, 0.6, 0.2], num_inference_steps=3)
arguments("sizes and crops of SDXL", model="sdxl", slow=True, original_size=(512, 64), target_size=(32, 300))


SPACING = {"timestep_spacing": "leading"}
"""Defaults differ from scheduler to scheduler, and from one in memory to one that was saved."""


def scheduled(name: str, scheduler: str, config: dict[str, Any], **given: Any) -> None:
    """Declares a row for another scheduler."""
    options = {key: given.pop(key) for key in ("model", "slow", "tolerance") if key in given}

    def use(pipe: Any) -> Tensor:
        pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, **SPACING, **config)
        return call(pipe, **given)

    CALLS.row(name, emulated=False, **options)(use)


scheduled("`timesteps`", "DPMSolverMultistepScheduler", {}, timesteps=[900, 600, 100], num_inference_steps=None)
scheduled("another scheduler, Karras sigmas", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True})
scheduled("a scheduler that adds noise", "EulerAncestralDiscreteScheduler", {})
scheduled("`eta`", "DDIMScheduler", {"clip_sample": False}, eta=1.0, tolerance=4.0)
SIGMAS = {"sigmas": [10.0, 3.0, 0.5], "num_inference_steps": None}
scheduled("`sigmas` of SDXL", "EulerDiscreteScheduler", {}, model="sdxl", slow=True, **SIGMAS)


@CALLS.row("`prompt_embeds`, weighted prompts")
def _prompt_embeds(pipe: Any) -> Tensor:
    text, empty = pipe.encode_prompt("a large dog", "cpu", 1, True)
    weights = torch.ones(text.shape[1], 1)
    weights[2] = 2.0
    return call(pipe, prompt=None, prompt_embeds=text * weights, negative_prompt_embeds=empty, guidance_scale=10.0)
