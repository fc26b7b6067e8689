"""The second text encoder of the SDXL pipeline: a wider tower that learns the space of the finished CLIP.

Source: Zhai et al. 2022, "LiT: Zero-Shot Transfer with Locked-image Text Tuning": the image tower stays as it is.
"""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from training.emoji.clip import contrastive_loss
from training.emoji.config import SecondTowerConfig
from training.emoji.data import make_pool, to_pixels, token_ids
from training.emoji.loop import Run, derive_seed, sample_batch, seeded_initialization, train_
from training.emoji.scenes import Sprites

STAGE = "second-tower"
_ENCODE_BATCH = 256


def build_second_tower(
    config: SecondTowerConfig, clip: CLIPModel, tokenizer: CLIPTokenizer
) -> CLIPTextModelWithProjection:
    """A text tower of its own size with an output in the CLIP's space; GELU, as SDXL's second one has."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            hidden_act="gelu",
            projection_dim=clip.config.projection_dim,
            vocab_size=len(tokenizer),
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train_second_tower(
    config: SecondTowerConfig, tokenizer: CLIPTokenizer, clip: CLIPModel, sprites: Sprites, run: Run
) -> None:
    """Train and, when complete, save the tower in `<run.directory>/second-tower`."""
    with seeded_initialization(derive_seed(run.seed, STAGE)):
        model = build_second_tower(config, clip, tokenizer)
    model.to(run.device)
    clip.to(run.device).eval().requires_grad_(False)
    pool = make_pool(sprites, config.scenes, derive_seed(run.seed, STAGE, "scenes"))
    ids, pictures = token_ids(tokenizer, pool.captions), _embed(clip, pool.images, run)

    def loss(generator: Generator) -> Tensor:
        batch = sample_batch(len(ids), config.schedule.batch_size, generator)
        captions = ids[batch].to(run.device)
        with run.autocast():
            texts = model(input_ids=captions).text_embeds
        logits = clip.logit_scale.exp() * pictures[batch].to(run.device) @ normalize(texts.float(), dim=-1).T
        return contrastive_loss(logits, captions)

    settings = asdict(config) | {"vocabulary": len(tokenizer)}
    if train_(model, loss, stage=STAGE, schedule=config.schedule, run=run, settings=settings):
        model.to(torch.device("cpu")).save_pretrained(run.directory / STAGE)


@torch.no_grad()
def _embed(clip: CLIPModel, images: Tensor, run: Run) -> Tensor:
    """Unit embeddings of uint8 pictures, `(N, D)` float32 on the CPU."""
    found = []
    for batch in torch.split(images, _ENCODE_BATCH):
        pooled = clip.vision_model(pixel_values=to_pixels(batch).to(run.device)).pooler_output
        found.append(normalize(clip.visual_projection(pooled), dim=-1).cpu())
    return torch.cat(found)
