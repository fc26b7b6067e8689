"""The SDXL denoiser: a UNet that is also told the picture's size, its crop, and the prompt as a whole."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass

import torch
from diffusers import AutoencoderKL, DDPMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from torch import Generator, Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from training.emoji.config import DenoiserXlConfig
from training.emoji.data import make_pool, sample_captions, token_ids
from training.emoji.denoiser import BETAS, TIMESTEPS, build_denoiser, min_snr_weights
from training.emoji.framing import WHOLE, frame_
from training.emoji.growth import fit_text_map, grow_
from training.emoji.loop import Average, Run, derive_seed, sample_batch, seeded_initialization, train_
from training.emoji.scenes import Sprites
from training.emoji.vae import encode

STAGE = "denoiser-xl"
_FITTED_CAPTIONS = 2000


@dataclass(frozen=True)
class TextTowers:
    """SDXL's two text encoders."""

    first: CLIPTextModel
    second: CLIPTextModelWithProjection

    @property
    def width(self) -> int:
        """Of the text embeddings."""
        return int(self.first.config.hidden_size + self.second.config.hidden_size)

    @torch.no_grad()
    def embed(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The last but one layers' states of both, side by side `(N, L, width)`, and the second's output `(N, D)`."""
        first = self.first(ids, output_hidden_states=True)
        second = self.second(ids, output_hidden_states=True)
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second.text_embeds

    def to_(self, device: torch.device) -> None:
        for tower in (self.first, self.second):
            tower.to(device).eval()


def build_denoiser_xl(config: DenoiserXlConfig, vae: AutoencoderKL, towers: TextTowers) -> UNet2DConditionModel:
    """UNet2DConditionModel with SDXL's conditions, and more transformer layers where the picture is smallest."""
    return build_denoiser(
        config.denoiser,
        vae,
        towers.width,
        transformer_layers_per_block=config.transformer_layers,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=config.condition_width,
        projection_class_embeddings_input_dim=len(WHOLE) * config.condition_width + towers.second.config.projection_dim,
    )


def build_scheduler_xl() -> EulerDiscreteScheduler:
    """The scheduler the pipeline samples with: SDXL's own."""
    return EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading")


def grown_denoiser(
    config: DenoiserXlConfig,
    vae: AutoencoderKL,
    towers: TextTowers,
    trained: UNet2DConditionModel,
    tokenizer: CLIPTokenizer,
    seed: int,
) -> UNet2DConditionModel:
    """A new denoiser that nearly computes what the trained Stable Diffusion one does."""
    with seeded_initialization(derive_seed(seed, STAGE)):
        model = build_denoiser_xl(config, vae, towers)
    captions = tuple(sample_captions(_FITTED_CAPTIONS, derive_seed(seed, STAGE, "fit")))
    ids = token_ids(tokenizer, captions)
    with torch.no_grad():
        old = towers.first(ids).last_hidden_state.flatten(0, 1)
    grow_(model, trained, fit_text_map(towers.embed(ids)[0].flatten(0, 1), old))
    return model


def train_denoiser_xl(
    config: DenoiserXlConfig,
    tokenizer: CLIPTokenizer,
    towers: TextTowers,
    vae: AutoencoderKL,
    trained: UNet2DConditionModel,
    sprites: Sprites,
    run: Run,
) -> None:
    """Train and, when complete, save the averaged model in `<run.directory>/denoiser-xl`.

    `trained`: the Stable Diffusion denoiser of the same world that it is grown from. Dropped captions are zeros, as
    the pipeline's `force_zeros_for_empty_prompt` has it.
    """
    model = grown_denoiser(config, vae, towers, trained, tokenizer, run.seed).to(run.device)
    towers.to_(run.device)
    pool = make_pool(sprites, config.denoiser.scenes, derive_seed(run.seed, STAGE, "scenes"))
    conditions = frame_(pool.images, config.framing, derive_seed(run.seed, STAGE, "framing"))
    latents = encode(vae.to(run.device).eval(), pool.images, run) * vae.config.scaling_factor
    ids = token_ids(tokenizer, pool.captions)
    scheduler = DDPMScheduler(**BETAS)
    weights = min_snr_weights(scheduler.alphas_cumprod, config.denoiser.snr_limit)
    size = config.denoiser.schedule.batch_size

    def loss(generator: Generator) -> Tensor:
        batch = sample_batch(len(latents), size, generator)
        kept = (torch.rand(size, generator=generator) >= config.denoiser.unconditional).to(run.device)
        timesteps = torch.randint(0, TIMESTEPS, (size,), generator=generator)
        clean = latents[batch]
        noise = torch.randn(clean.shape, generator=generator)
        noisy = scheduler.add_noise(clean, noise, timesteps).to(run.device)
        with run.autocast():
            text, pooled = towers.embed(ids[batch].to(run.device))
            added = {"text_embeds": pooled * kept[:, None], "time_ids": conditions[batch].to(run.device)}
            predicted = model(
                noisy,
                timesteps.to(run.device),
                encoder_hidden_states=text * kept[:, None, None],
                added_cond_kwargs=added,
            ).sample
        errors = (predicted.float() - noise.to(run.device)).square().mean((1, 2, 3))
        return torch.mean(errors * weights[timesteps].to(run.device))

    averaged = copy.deepcopy(model).eval()
    average = Average(averaged, config.denoiser.average_decay)
    settings = asdict(config) | {"latent_scale": vae.config.scaling_factor}
    schedule = config.denoiser.schedule
    if train_(model, loss, stage=STAGE, schedule=schedule, run=run, settings=settings, average=average):
        averaged.to(torch.device("cpu")).save_pretrained(run.directory / STAGE)
