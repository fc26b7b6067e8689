"""The denoiser: a UNet that predicts the noise in a latent, given the timestep and the prompt."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, PNDMScheduler, UNet2DConditionModel
from torch import Generator, Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from training.emoji.config import DenoiserConfig
from training.emoji.data import make_pool, token_ids
from training.emoji.loop import Average, Run, derive_seed, sample_batch, seeded_initialization, train_
from training.emoji.scenes import Sprites
from training.emoji.vae import encode

STAGE = "denoiser"
TIMESTEPS = 1000
BETAS = {"num_train_timesteps": TIMESTEPS, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def build_denoiser(
    config: DenoiserConfig, vae: AutoencoderKL, text_width: int, **architecture: Any
) -> UNet2DConditionModel:
    """UNet2DConditionModel for the VAE's latents and text embeddings of the given width.

    `architecture`: further keys of its configuration.
    """
    levels = len(config.widths)
    return UNet2DConditionModel(
        sample_size=vae.config.sample_size // 2 ** (len(vae.config.block_out_channels) - 1),
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        layers_per_block=config.layers_per_block,
        block_out_channels=config.widths,
        # Attention at the finest resolution would cost most of the time for little: it is left out there.
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * (levels - 1)),
        up_block_types=(*("CrossAttnUpBlock2D",) * (levels - 1), "UpBlock2D"),
        cross_attention_dim=text_width,
        attention_head_dim=config.head_dim,
        norm_num_groups=config.norm_groups,
        **architecture,
    )


def build_scheduler() -> PNDMScheduler:
    """The scheduler the pipeline samples with: Stable Diffusion's own."""
    return PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)


def min_snr_weights(alphas_cumprod: Tensor, limit: float) -> Tensor:
    """Loss weight of every timestep for noise prediction: min(SNR, limit) / SNR with SNR = a / (1 - a).

    Source: Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", section 3.4.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return snr.clamp(max=limit) / snr


def train_denoiser(
    config: DenoiserConfig,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    vae: AutoencoderKL,
    sprites: Sprites,
    run: Run,
) -> None:
    """Train and, when complete, save the averaged model in `<run.directory>/denoiser`."""
    text_encoder.to(run.device).eval()
    with seeded_initialization(derive_seed(run.seed, STAGE)):
        model = build_denoiser(config, vae, text_encoder.config.hidden_size).to(run.device)
    pool = make_pool(sprites, config.scenes, derive_seed(run.seed, STAGE, "scenes"))
    latents = encode(vae.to(run.device).eval(), pool.images, run) * vae.config.scaling_factor
    ids, empty = token_ids(tokenizer, pool.captions), token_ids(tokenizer, ("",))
    scheduler = DDPMScheduler(**BETAS)
    weights = min_snr_weights(scheduler.alphas_cumprod, config.snr_limit)
    size = config.schedule.batch_size

    def loss(generator: Generator) -> Tensor:
        batch = sample_batch(len(latents), size, generator)
        dropped = torch.rand(size, 1, generator=generator) < config.unconditional
        captions = torch.where(dropped, empty, ids[batch]).to(run.device)
        timesteps = torch.randint(0, TIMESTEPS, (size,), generator=generator)
        clean = latents[batch]
        noise = torch.randn(clean.shape, generator=generator)
        noisy = scheduler.add_noise(clean, noise, timesteps).to(run.device)
        with run.autocast():
            with torch.no_grad():
                text = text_encoder(captions).last_hidden_state
            predicted = model(noisy, timesteps.to(run.device), encoder_hidden_states=text).sample
        errors = (predicted.float() - noise.to(run.device)).square().mean((1, 2, 3))
        return torch.mean(errors * weights[timesteps].to(run.device))

    averaged = copy.deepcopy(model).eval()
    average = Average(averaged, config.average_decay)
    # The scale stands for the VAE: a checkpoint made on another VAE's latents must not be resumed.
    settings = asdict(config) | {"latent_scale": vae.config.scaling_factor}
    if train_(model, loss, stage=STAGE, schedule=config.schedule, run=run, settings=settings, average=average):
        averaged.to(torch.device("cpu")).save_pretrained(run.directory / STAGE)
