"""Tiny pipelines in full precision and their artifacts, made once, for the table of features."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

import bitbrush
from bitbrush.artifact.store import load_with
from bitbrush.network.layers import QuantizedLayer
from bitbrush.numerics.affine import QParams
from bitbrush.runtime.choose import Choice
from bitbrush.runtime.cuda.package import require_triton
from bitbrush.runtime.cuda.runtime import CudaRuntime
from tests.artifact.pipelines import (
    CASES,
    NO_CHECKER,
    PNDM,
    PROMPTS,
    SD1,
    SQUARE,
    clip,
    clip_tokenizer,
    pipeline,
    scheduler,
    vae,
)

TINY = {
    **SD1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
}
SMALLER = {
    **TINY,
    "sample_size": 4,
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "mid_block_type": None,
    "block_out_channels": (4,),
    "attention_head_dim": 2,
}
"""Keys of a U-Net that Triton's interpreter computes in seconds."""
TEXT = {"max_sequence_length": 20}
CALLS: dict[str, dict[str, Any]] = {
    "sd": {"num_inference_steps": 3},
    "sdxl": {"num_inference_steps": 2, "guidance_scale": 5.0},
    "sdxl-refiner": {"num_inference_steps": 4},
    "sd3": {"num_inference_steps": 4, "guidance_scale": 5.0, **SQUARE, **TEXT},
    "flux": {"num_inference_steps": 4, "guidance_scale": 0.0, **SQUARE, **TEXT},
}
"""Arguments of the plain call of each model."""
GENERIC_KEYS = {"steps": 12, "num_prompts": 2, "weights": 8, "activations": 16}


def call(pipe: Any, prompt: Any = "a cat", **arguments: Any) -> Tensor:
    """Calls a pipeline with the arguments of its model, the given ones and a seed.

    Returns:
        Latents, in float32.
    """
    generator = torch.Generator().manual_seed(0)
    known = {**_arguments(pipe), "prompt": prompt, "generator": generator, "output_type": "latent", **arguments}
    pipe.set_progress_bar_config(disable=True)
    y: Tensor = pipe(**{key: value for key, value in known.items() if value is not None})[0]
    return y.float()


def _arguments(pipe: Any) -> dict[str, Any]:
    if hasattr(pipe, "unet"):
        if pipe.unet.config.sample_size == SMALLER["sample_size"]:
            return {"num_inference_steps": 1}
        if pipe.config.get("requires_aesthetics_score"):
            return CALLS["sdxl-refiner"]
        return CALLS["sdxl" if hasattr(pipe, "text_encoder_2") else "sd"]
    return CALLS["sd3" if hasattr(pipe, "text_encoder_3") else "flux"]


def stable_diffusion(unet: dict[str, Any]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return diffusers.StableDiffusionPipeline(
            vae=vae(),
            text_encoder=clip(),
            tokenizer=clip_tokenizer(),
            unet=diffusers.UNet2DConditionModel(**unet).eval(),
            scheduler=scheduler("PNDMScheduler", **PNDM),
            **NO_CHECKER,
        )


def gligen() -> Any:
    """Makes a pipeline whose denoiser can look at boxes, as strongly as a trained one."""
    pipe = stable_diffusion({**TINY, "attention_type": "gated"})
    for name, parameter in pipe.unet.named_parameters():
        if ".fuser.alpha_" in name:
            torch.nn.init.constant_(parameter, 3.0)
    return pipe


MAKERS: dict[str, Callable[[], Any]] = {
    "gligen": gligen,
    "sd": lambda: stable_diffusion(TINY),
    "sd-smaller": lambda: stable_diffusion(SMALLER),
    "sdxl": lambda: pipeline(CASES["sdxl-turbo"]),
    "sdxl-refiner": lambda: pipeline(CASES["sdxl-refiner"]),
    "sd3": lambda: pipeline(CASES["sd3"]),
    "flux": lambda: pipeline(CASES["flux-schnell"]),
}
CALIBRATED: dict[str, dict[str, Any]] = {
    "gligen": {"exclude": ["*.fuser.*", "position_net.*"]},
    "sd-smaller": {"steps": 2},
    "sdxl": {"steps": 2, "guidance_scale": 5.0},
    "sdxl-refiner": {"steps": 4, "pipeline_arguments": {"strength": 0.5}},
    "sd3": {"steps": 4, "guidance_scale": 5.0, "pipeline_arguments": {**SQUARE, **TEXT}},
    "flux": {"steps": 4, "guidance_scale": 0.0, "pipeline_arguments": {**SQUARE, **TEXT}},
}


@cache
def _made(model: str) -> Any:
    return MAKERS[model]()


def full(model: str) -> Any:
    """Returns a pipeline in full precision, the caller's own."""
    return copy.deepcopy(_made(model))


class Models:
    """Artifacts in a folder, made when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def loaded(self, model: str, runtime: str) -> Any:
        """Loads an artifact in float32 on a runtime; ``cuda`` is Triton's interpreter."""
        if runtime != "cuda":
            return bitbrush.load(self._artifact(model), runtime=runtime, dtype="float32")
        require_triton()
        cpu = torch.device("cpu")
        return load_with(self._artifact(model), Choice(CudaRuntime(cpu, torch.float32), "for this test", device=cpu))

    def _artifact(self, model: str) -> Path:
        folder = self._folder / model
        if not folder.exists():
            keys = {**GENERIC_KEYS, **CALIBRATED.get(model, {})}
            recipe = bitbrush.METHODS["one-shot"].recipe(keys)
            inputs = CASES[model].inputs if model in CASES else {}
            quantization = bitbrush.quantize(full(model), recipe, PROMPTS, inputs=inputs)
            layers = tuple(map(widened, quantization.outcome.layers))
            wide = replace(quantization, outcome=replace(quantization.outcome, layers=layers))
            bitbrush.save(wide, folder, base_model="a/model")
        return folder


def widened(layer: QuantizedLayer) -> QuantizedLayer:
    """Makes ranges eight times as wide, so that no feature's values are clipped."""
    wide = [QParams.from_range(*(8 * end for end in one.range), one.bits) for one in layer.schedule.qparams]
    return replace(layer, activations=replace(layer.schedule, qparams=tuple(wide)))


def named(model: str, runtime: str) -> str:
    """Returns the model that stands for another on a runtime."""
    return f"{model}-smaller" if runtime == "cuda" and model == "sd" else model
