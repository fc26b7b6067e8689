"""CLIP of the world: a text and an image tower trained to recognise which caption belongs to which picture."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Generator, Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from training.emoji.config import ClipConfig
from training.emoji.data import make_pool, to_pixels, token_ids
from training.emoji.loop import Run, derive_seed, sample_batch, seeded_initialization, train_
from training.emoji.scenes import RESOLUTION, Sprites

STAGE = "clip"


def build_clip(config: ClipConfig, tokenizer: CLIPTokenizer) -> CLIPModel:
    """CLIPModel with two towers of the same size."""
    tower = {
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "hidden_act": "quick_gelu",
        "projection_dim": config.width,
    }
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"image_size": RESOLUTION, "patch_size": config.patch}
    return CLIPModel(CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=config.width))


def contrastive_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Symmetric cross-entropy of the similarities `(N, N)`, images by captions; equal captions all count as right.

    Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", figure 3.
    Deviation: there every caption is its own class; in a small world many captions of a batch are the same.
    """
    same = (ids[:, None] == ids[None]).all(-1).to(logits.dtype)
    target = same / same.sum(1, keepdim=True)
    by_image = -(target * logits.log_softmax(1)).sum(1).mean()
    by_caption = -(target * logits.T.log_softmax(1)).sum(1).mean()
    return (by_image + by_caption) / 2


def train_clip(config: ClipConfig, tokenizer: CLIPTokenizer, sprites: Sprites, run: Run) -> None:
    """Train and, when complete, save the model with its tokenizer and image processor in `<run.directory>/clip`."""
    with seeded_initialization(derive_seed(run.seed, STAGE)):
        model = build_clip(config, tokenizer)
    model.to(run.device)
    pool = make_pool(sprites, config.scenes, derive_seed(run.seed, STAGE, "scenes"))
    ids = token_ids(tokenizer, pool.captions)

    def loss(generator: Generator) -> Tensor:
        batch = sample_batch(len(pool.images), config.schedule.batch_size, generator)
        pixels, captions = to_pixels(pool.images[batch]).to(run.device), ids[batch].to(run.device)
        with run.autocast():
            logits = model(input_ids=captions, pixel_values=pixels).logits_per_image
        return contrastive_loss(logits.float(), captions)

    settings = asdict(config) | {"vocabulary": len(tokenizer)}
    if train_(model, loss, stage=STAGE, schedule=config.schedule, run=run, settings=settings):
        directory = run.directory / STAGE
        model.to(torch.device("cpu")).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        _image_processor().save_pretrained(directory)


def _image_processor() -> CLIPImageProcessor:
    """Pictures as `to_pixels` makes them: 64x64 in [-1, 1]."""
    return CLIPImageProcessor(
        size={"shortest_edge": RESOLUTION},
        crop_size={"height": RESOLUTION, "width": RESOLUTION},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
