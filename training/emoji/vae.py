"""The VAE: pictures to latents and back."""

from __future__ import annotations

from dataclasses import asdict

import torch
from diffusers import AutoencoderKL
from torch import Generator, Tensor

from training.emoji.config import VaeConfig
from training.emoji.data import make_pool, to_pixels
from training.emoji.loop import Run, derive_seed, sample_batch, seeded_initialization, train_
from training.emoji.scenes import RESOLUTION, Sprites

STAGE = "vae"
_SCALE_PICTURES = 1024  # pictures that the latents' standard deviation is measured on
_ENCODE_BATCH = 100


def build_vae(config: VaeConfig) -> AutoencoderKL:
    """AutoencoderKL for 64x64 pictures."""
    levels = len(config.widths)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.widths,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        sample_size=RESOLUTION,
    )


def edge_loss(reconstruction: Tensor, pictures: Tensor) -> Tensor:
    """Mean absolute difference of the horizontal and the vertical image gradients; it is what keeps outlines."""
    error = reconstruction - pictures
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def train_vae(config: VaeConfig, sprites: Sprites, run: Run) -> None:
    """Train and, when complete, save the model in `<run.directory>/vae`.

    Its scaling factor is the one that gives latents unit variance.
    """
    with seeded_initialization(derive_seed(run.seed, STAGE)):
        model = build_vae(config)
    model.to(run.device)
    images = make_pool(sprites, config.scenes, derive_seed(run.seed, STAGE, "scenes")).images

    def loss(generator: Generator) -> Tensor:
        batch = sample_batch(len(images), config.schedule.batch_size, generator)
        pictures = to_pixels(images[batch]).to(run.device)
        with run.autocast():
            posterior = model.encode(pictures).latent_dist
            latents = posterior.sample(generator=generator)
            reconstruction = model.decode(latents).sample
        reconstruction = reconstruction.float()
        divergence = posterior.kl().float().mean() / latents[0].numel()
        error = (reconstruction - pictures).abs().mean()
        edges = edge_loss(reconstruction, pictures)
        total: Tensor = error + config.edge_weight * edges + config.kl_weight * divergence
        return total

    if train_(model, loss, stage=STAGE, schedule=config.schedule, run=run, settings=asdict(config)):
        scale = 1 / encode(model, images[:_SCALE_PICTURES], run).std().item()
        model.register_to_config(scaling_factor=scale)
        model.to(torch.device("cpu")).save_pretrained(run.directory / STAGE)


@torch.no_grad()
def encode(model: AutoencoderKL, images: Tensor, run: Run) -> Tensor:
    """Posterior means of uint8 pictures, `(N, C, h, w)` float32 on the CPU, not scaled."""
    means = []
    for batch in torch.split(images, _ENCODE_BATCH):
        with run.autocast():
            posterior = model.encode(to_pixels(batch).to(run.device)).latent_dist
        means.append(posterior.mean.float().cpu())
    return torch.cat(means)
