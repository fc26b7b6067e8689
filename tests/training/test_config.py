"""Learning rates, and the size of what the configurations build."""

from itertools import pairwise

import pytest
import torch
from transformers import CLIPTokenizer

from bitbrush import zoo
from training.emoji.clip import build_clip
from training.emoji.config import LARGE, SMALL, Recipe, Schedule
from training.emoji.denoiser import build_denoiser
from training.emoji.vae import build_vae

MAX_BYTES = 60_000_000


def half_precision_bytes(recipe: Recipe) -> dict[str, int]:
    tokenizer = CLIPTokenizer.from_pretrained(zoo.model_path("emoji-sd") / "tokenizer")
    with torch.device("meta"):
        vae = build_vae(recipe.vae)
        clip = build_clip(recipe.clip, tokenizer)
        denoiser = build_denoiser(recipe.denoiser, vae, recipe.clip.width)
    modules = {"vae": vae, "clip": clip, "text_encoder": clip.text_model, "unet": denoiser}
    return {name: 2 * sum(p.numel() for p in module.parameters()) for name, module in modules.items()}


def test_small_is_what_ships() -> None:
    assert half_precision_bytes(SMALL) == pytest.approx(
        {"vae": 1.364e6, "clip": 3.570e6, "text_encoder": 1.851e6, "unet": 21.72e6}, rel=1e-3
    )


def test_large_fits_the_limit() -> None:
    sizes = half_precision_bytes(LARGE)
    assert sum(sizes.values()) < MAX_BYTES
    assert sizes["vae"] > 2 * half_precision_bytes(SMALL)["vae"]


def test_schedule_warms_up_holds_and_falls() -> None:
    schedule = Schedule(steps=100, batch_size=1, learning_rate=2.0, warmup=10, hold=0.5)
    rates = [schedule.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9:51] == pytest.approx([2.0] * 42)
    assert all(later < earlier for earlier, later in pairwise(rates[51:]))
    assert 0 < rates[-1] < 0.01
