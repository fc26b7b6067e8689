"""The finished models: diffusers pipelines and a CLIP, in half-precision safetensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTextModelWithProjection

from bitbrush import zoo
from bitbrush.artifact.vocabulary import save_vocabulary
from training.emoji import clip, denoiser, denoiser_xl, second_tower, vae
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
        forget_places(directory / name)
    save_vocabulary(tokenizer, directory / "emoji-sd" / "tokenizer")
    tokenizer.save_pretrained(directory / "emoji-clip")
    CLIPImageProcessor.from_pretrained(clip_directory).save_pretrained(directory / "emoji-clip")


def assemble_xl(directory: Path) -> None:
    """Write `emoji-sdxl` into the directory. Raises FileNotFoundError where a stage is not complete."""
    tokenizer = load_tokenizer(directory / "tokenizer")
    towers = load_towers(directory)
    pipeline = StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_pretrained(finished(directory, vae.STAGE)),
        text_encoder=towers.first,
        text_encoder_2=towers.second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=UNet2DConditionModel.from_pretrained(finished(directory, denoiser_xl.STAGE)),
        scheduler=denoiser_xl.build_scheduler_xl(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipeline.save_pretrained(directory / "emoji-sdxl")
    for name in ("tokenizer", "tokenizer_2"):
        save_vocabulary(tokenizer, directory / "emoji-sdxl" / name)
    halve_weights(directory / "emoji-sdxl")
    forget_places(directory / "emoji-sdxl")


def forget_places(directory: Path) -> None:
    """Takes out of every configuration the folder of the machine that its network was trained in."""
    for path in directory.rglob("config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def has_xl(directory: Path) -> bool:
    """Whether the SDXL pipeline's own stages are complete."""
    return all((directory / stage / "config.json").is_file() for stage in (second_tower.STAGE, denoiser_xl.STAGE))


def load_towers(directory: Path) -> denoiser_xl.TextTowers:
    """The text encoders of the SDXL pipeline. Raises FileNotFoundError where a stage is not complete."""
    return denoiser_xl.TextTowers(
        CLIPTextModel.from_pretrained(finished(directory, clip.STAGE), dtype=torch.float32),
        CLIPTextModelWithProjection.from_pretrained(finished(directory, second_tower.STAGE), dtype=torch.float32),
    )


def lay_out_shipped(directory: Path) -> None:
    """Copy the networks of the bundled `emoji-sd` and `emoji-clip` to where their stages leave them.

    Raises FileExistsError where a stage has left something already.
    """
    pipeline, whole_clip = zoo.model_path("emoji-sd"), zoo.model_path("emoji-clip")
    assert pipeline is not None
    assert whole_clip is not None
    sources = {
        "tokenizer": pipeline / "tokenizer",
        clip.STAGE: whole_clip,
        vae.STAGE: pipeline / "vae",
        denoiser.STAGE: pipeline / "unet",
    }
    for stage, source in sources.items():
        shutil.copytree(source, directory / stage)


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
