"""Quantizing where the denoiser is."""

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

import bitbrush
from tests.fake_card import OnCard, fake_card

PROMPTS = ("a red apple", "a green tree", "a blue car", "two cats")
SMALL = {"rounding": "nearest", "steps": 2, "num_prompts": 2, "weights": 4, "activations": 6}
STAGES: dict[str, dict[str, Any]] = {
    "none": {},
    "learned": {"rounding": "learned"},
    "adaround": {"rounding": "adaround"},
    "quantized-inputs": {"rounding": "quantized-inputs"},
    "measured bits": {"relax": "auto:6.4", "weight_allocation": "measured"},
    "branches": {"low_rank": 4},
    "learned step sizes": {"step_sizes": "learned"},
    "split skips": {"skip_inputs": "split"},
    "equivalent scaling": {"smoothing": "learned"},
    "output means": {"output_means": "correct"},
    "start token": {"first_token": "known"},
    "groups of inputs": {"group_size": 8},
    "dynamic": {"method": "dynamic", "relax": "none", "activation_range": "min-max"},
    "ptq4dm": {"method": "ptq4dm", "relax": "none"},
    "rtn": {"method": "rtn", "relax": "none"},
    "one-shot": {"method": "one-shot", "relax": "none"},
}


@pytest.mark.parametrize("stage", STAGES)
def test_quantizing_on_a_card(tiny_pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    monkeypatch.setattr("bitbrush.timeline.spool.SMALLEST", 64)
    monkeypatch.setattr("bitbrush.rounding.adaround.ITERATIONS", 3)
    monkeypatch.setattr("bitbrush.rounding.reconstruction.ITERATIONS", 2)
    recipe = bitbrush.METHODS["pcr"].recipe({**SMALL, **STAGES[stage]})
    expected = bitbrush.quantize(tiny_pipe, recipe, PROMPTS)
    with fake_card(monkeypatch) as card:
        tiny_pipe.to(card)
        made = bitbrush.quantize(tiny_pipe, recipe, PROMPTS)
    for a, b in zip(made.outcome.layers, expected.outcome.layers, strict=True):
        w = a.weight.w_q
        assert torch.equal(w.inner if isinstance(w, OnCard) else w, b.weight.w_q), a.name
        assert a.activations == b.activations
