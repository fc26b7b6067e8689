"""Command line of the recipe: `python -m training.emoji STAGE`.

Stages in order: sprites, tokenizer, clip, vae, denoiser, second-tower, denoiser-xl, assemble. `prompts` stands alone.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel

from training.emoji import assemble as assembly
from training.emoji import clip as clip_stage
from training.emoji import denoiser as denoiser_stage
from training.emoji import denoiser_xl as xl_stage
from training.emoji import second_tower as tower_stage
from training.emoji import vae as vae_stage
from training.emoji.config import LARGE, SMALL, Recipe
from training.emoji.data import sample_captions
from training.emoji.loop import Run, derive_seed
from training.emoji.prompts import SEED, write_prompts
from training.emoji.scenes import Sprites
from training.emoji.sprites import fetch_sprites, load_sprites
from training.emoji.tokenizer import load_tokenizer, train_tokenizer


class Size(StrEnum):
    """Which configuration to train."""

    SMALL = "small"
    LARGE = "large"

    @property
    def recipe(self) -> Recipe:
        return LARGE if self is Size.LARGE else SMALL


Out = Annotated[Path, typer.Option("--out", help="Directory of all results; a stage finds the earlier ones here.")]
Device = Annotated[str, typer.Option("--device", help="Where to train: cpu, cuda, cuda:1, mps.")]
Seed = Annotated[int, typer.Option("--seed", help="The run is a function of this seed.")]
SizeOption = Annotated[Size, typer.Option("--size", help="small: as shipped, for a CPU. large: for a GPU.")]
Bfloat16 = Annotated[bool, typer.Option(help="Compute in bfloat16: for a GPU, or a processor with bfloat16 units.")]
Until = Annotated[int | None, typer.Option("--until", min=1, help="Stop at this step; run again to go on from there.")]

DEFAULT_OUT = Path("out/emoji")

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Train the models bundled with bitbrush.")


@app.command()
def sprites(out: Out = DEFAULT_OUT) -> None:
    """Fetch the Fluent Emoji sprites with npm."""
    fetch_sprites(_sprites_directory(out))


@app.command()
def prompts(
    out: Annotated[Path, typer.Option("--out", help="Directory of the prompt files.")],
    seed: Seed = SEED,
) -> None:
    """Write the prompt sets. Needs neither sprites nor a trained model."""
    write_prompts(out, seed)


@app.command()
def tokenizer(out: Out = DEFAULT_OUT, seed: Seed = 0, size: SizeOption = Size.SMALL) -> None:
    """Learn the tokenizer from captions."""
    config = size.recipe.tokenizer
    captions = sample_captions(config.captions, derive_seed(seed, "tokenizer"))
    train_tokenizer(captions, config).save_pretrained(out / "tokenizer")


@app.command()
def clip(
    *,
    out: Out = DEFAULT_OUT,
    device: Device = "cpu",
    seed: Seed = 0,
    size: SizeOption = Size.SMALL,
    until: Until = None,
    bfloat16: Bfloat16 = False,
) -> None:
    """Train the CLIP, whose text tower becomes the pipeline's text encoder."""
    run = Run(out, torch.device(device), seed=seed, until=until, bfloat16=bfloat16)
    clip_stage.train_clip(size.recipe.clip, load_tokenizer(out / "tokenizer"), _load_sprites(out), run)


@app.command()
def vae(
    *,
    out: Out = DEFAULT_OUT,
    device: Device = "cpu",
    seed: Seed = 0,
    size: SizeOption = Size.SMALL,
    until: Until = None,
    bfloat16: Bfloat16 = False,
) -> None:
    """Train the VAE."""
    run = Run(out, torch.device(device), seed=seed, until=until, bfloat16=bfloat16)
    vae_stage.train_vae(size.recipe.vae, _load_sprites(out), run)


@app.command()
def denoiser(
    *,
    out: Out = DEFAULT_OUT,
    device: Device = "cpu",
    seed: Seed = 0,
    size: SizeOption = Size.SMALL,
    until: Until = None,
    bfloat16: Bfloat16 = False,
) -> None:
    """Train the UNet on the VAE's latents and the CLIP's text embeddings."""
    run = Run(out, torch.device(device), seed=seed, until=until, bfloat16=bfloat16)
    denoiser_stage.train_denoiser(
        size.recipe.denoiser,
        load_tokenizer(out / "tokenizer"),
        CLIPTextModel.from_pretrained(assembly.finished(out, clip_stage.STAGE), dtype=torch.float32),
        AutoencoderKL.from_pretrained(assembly.finished(out, vae_stage.STAGE), dtype=torch.float32),
        _load_sprites(out),
        run,
    )


@app.command()
def second_tower(
    *,
    out: Out = DEFAULT_OUT,
    device: Device = "cpu",
    seed: Seed = 0,
    size: SizeOption = Size.SMALL,
    until: Until = None,
    bfloat16: Bfloat16 = False,
) -> None:
    """Train the second text encoder of the SDXL pipeline on the CLIP's image embeddings."""
    run = Run(out, torch.device(device), seed=seed, until=until, bfloat16=bfloat16)
    clip = CLIPModel.from_pretrained(assembly.finished(out, clip_stage.STAGE), dtype=torch.float32)
    tokenizer = load_tokenizer(out / "tokenizer")
    tower_stage.train_second_tower(size.recipe.second_tower, tokenizer, clip, _load_sprites(out), run)


@app.command()
def denoiser_xl(
    *,
    out: Out = DEFAULT_OUT,
    device: Device = "cpu",
    seed: Seed = 0,
    size: SizeOption = Size.SMALL,
    until: Until = None,
    bfloat16: Bfloat16 = False,
) -> None:
    """Train the SDXL UNet, grown from the Stable Diffusion one."""
    run = Run(out, torch.device(device), seed=seed, until=until, bfloat16=bfloat16)
    xl_stage.train_denoiser_xl(
        size.recipe.denoiser_xl,
        load_tokenizer(out / "tokenizer"),
        assembly.load_towers(out),
        AutoencoderKL.from_pretrained(assembly.finished(out, vae_stage.STAGE), dtype=torch.float32),
        UNet2DConditionModel.from_pretrained(assembly.finished(out, denoiser_stage.STAGE), dtype=torch.float32),
        _load_sprites(out),
        run,
    )


@app.command()
def shipped(out: Out = DEFAULT_OUT) -> None:
    """Start from the shipped emoji-sd and emoji-clip: put their networks where the stages leave them."""
    assembly.lay_out_shipped(out)


@app.command()
def assemble(out: Out = DEFAULT_OUT) -> None:
    """Write emoji-sd and emoji-clip in half precision, and emoji-sdxl where its stages are complete."""
    assembly.assemble(out)
    if assembly.has_xl(out):
        assembly.assemble_xl(out)


def _sprites_directory(out: Path) -> Path:
    return out / "sprites"


def _load_sprites(out: Path) -> Sprites:
    return load_sprites(_sprites_directory(out))


if __name__ == "__main__":
    app()
