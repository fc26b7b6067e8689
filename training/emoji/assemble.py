"""The finished models: a diffusers pipeline and a CLIP, in half-precision safetensors."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPModel, CLIPTextModel

from training.emoji import clip, denoiser, vae
from training.emoji.tokenizer import load_tokenizer


def assemble(directory: Path) -> None:
    """Write `emoji-sd` and `emoji-clip` into the directory from what the stages left there.

    Raises FileNotFoundError where a stage is not complete.
    """
    tokenizer = load_tokenizer(directory / "tokenizer")
    clip_directory = finished(directory, clip.STAGE)
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(finished(directory, vae.STAGE)),
        text_encoder=CLIPTextModel.from_pretrained(clip_directory),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel.from_pretrained(finished(directory, denoiser.STAGE)),
        scheduler=denoiser.build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    models = {"emoji-sd": pipeline, "emoji-clip": CLIPModel.from_pretrained(clip_directory)}
    for name, model in models.items():
        model.save_pretrained(directory / name)
        halve_weights(directory / name)
    tokenizer.save_pretrained(directory / "emoji-clip")
    CLIPImageProcessor.from_pretrained(clip_directory).save_pretrained(directory / "emoji-clip")


def finished(directory: Path, stage: str) -> Path:
    """Where a complete stage left its model. Raises FileNotFoundError where it is not complete."""
    result = directory / stage
    if not (result / "config.json").is_file():
        raise FileNotFoundError(f"stage {stage} is not complete in {directory}; run `python -m training.emoji {stage}`")
    return result


def halve_weights(directory: Path) -> None:
    """Rewrite every safetensors file below `directory` in float16.

    The configurations keep saying float32: halved files are for size, and the models are meant to be read as fp32.
    """
    for path in sorted(directory.rglob("*.safetensors")):
        tensors = load_file(path)
        halved = {
            name: value.to(torch.float16) if value.is_floating_point() else value for name, value in tensors.items()
        }
        save_file(halved, path, metadata={"format": "pt"})
