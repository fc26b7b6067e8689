"""Quantizing where the denoiser is: on a card that is none, but refuses tensors of the processor as a real one does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

import bitbrush
from bitbrush.session.machine import find_device
from bitbrush.session.offload import IN_MEMORY, Offload, bring_to
from bitbrush.sources.models import load_source
from tests.artifact.pipelines import PROMPTS
from tests.fake_card import OnCard, fake_card

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SMALL = {"rounding": "nearest", "steps": 2, "num_prompts": 2, "weights": 4, "activations": 6}
STAGES: dict[str, dict[str, Any]] = {
    "learned rounding": {"rounding": "learned"},
}
MORE_STAGES: dict[str, dict[str, Any]] = {
    "branches, measured bits": {"low_rank": 4, "relax": "auto:6.4", "weight_allocation": "measured"},
    "AdaRound": {"rounding": "adaround"},
    "learned step sizes": {"method": "qdiffusion", "relax": "none", "step_sizes": "learned"},
    "split skips": {"skip_inputs": "split"},
    "equivalent scaling": {"smoothing": "smoothquant"},
    "start token": {"first_token": "known"},
    "ranges at run time": {"method": "dynamic", "relax": "none", "activation_range": "min-max"},
    "one range": {"method": "rtn", "relax": "none"},
}


@pytest.mark.parametrize("stage", [*STAGES, *(pytest.param(stage, marks=pytest.mark.slow) for stage in MORE_STAGES)])
def test_a_card_gives_what_the_processor_gives(
    stage: str, tiny_pipe: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples of all sizes wait on the disk meanwhile; the work is resumable; the result is on the processor."""
    monkeypatch.setattr("bitbrush.session.offload.SMALLEST", 64)
    monkeypatch.setattr("bitbrush.rounding.compensation.OFFLOAD_BYTES", 64)
    recipe = bitbrush.METHODS["pcr"].recipe({**SMALL, **(STAGES | MORE_STAGES)[stage]})
    expected = bitbrush.quantize(tiny_pipe, recipe, PROMPTS)
    wanted_folder = bitbrush.save(expected, tmp_path / "expected", base_model="someone/tiny")
    with fake_card(monkeypatch) as card:
        tiny_pipe.to(card)
        assert all(isinstance(one, OnCard) for one in tiny_pipe.unet.parameters())
        made = bitbrush.quantize(tiny_pipe, recipe, PROMPTS, work=tmp_path / "work")
        again = bitbrush.quantize(tiny_pipe, recipe, PROMPTS, work=tmp_path / "work")
        made.pipeline()("a cat", num_inference_steps=1, output_type="latent")
        folder = bitbrush.save(made, tmp_path / "artifact", base_model="someone/tiny")
    for one, other, wanted in zip(made.outcome.layers, again.outcome.layers, expected.outcome.layers, strict=True):
        assert torch.equal(one.weight.w_q, wanted.weight.w_q), one.name
        assert torch.equal(other.weight.w_q, wanted.weight.w_q), one.name
        assert one.activations == wanted.activations
    assert (folder / WEIGHTS).read_bytes() == (wanted_folder / WEIGHTS).read_bytes()


def test_recalibrating_on_a_card(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = bitbrush.METHODS["pcr"].recipe(SMALL)
    made = bitbrush.quantize(tiny_pipe, recipe, PROMPTS)
    folder = bitbrush.save(made, tmp_path / "artifact", base_model="someone/tiny")
    expected = bitbrush.recalibrate(folder, {"steps": 3}, PROMPTS)
    with fake_card(monkeypatch) as card:
        again = bitbrush.recalibrate(folder, {"steps": 3}, PROMPTS, device=card)
        assert again.source.device == card
    for one, wanted in zip(again.outcome.layers, expected.outcome.layers, strict=True):
        assert one.activations == wanted.activations, one.name


def test_half_precision_stays_so_on_a_card(tiny_pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = bitbrush.METHODS["pcr"].recipe(SMALL)
    tiny_pipe.unet.half()
    expected = bitbrush.quantize(tiny_pipe, recipe, PROMPTS)
    with fake_card(monkeypatch) as card:
        tiny_pipe.to(card)
        made = bitbrush.quantize(tiny_pipe, recipe, PROMPTS)
        assert tiny_pipe.unet.conv_in.weight.dtype is torch.float16
    for one, wanted in zip(made.outcome.layers, expected.outcome.layers, strict=True):
        assert torch.equal(one.weight.w_q, wanted.weight.w_q), one.name
        assert one.activations == wanted.activations


def test_a_model_is_loaded_onto_the_card(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = bitbrush.METHODS["pcr"].recipe(SMALL)
    tiny_pipe.to(torch.float16).save_pretrained(tmp_path / "model")
    expected = bitbrush.quantize(load_source(tmp_path / "model", offload=Offload(tmp_path)), recipe, PROMPTS)
    with fake_card(monkeypatch) as card:
        pipe = load_source(tmp_path / "model", offload=Offload(tmp_path), device=card)
        parameters = [*pipe.unet.parameters(), *pipe.text_encoder.parameters(), *pipe.vae.parameters()]
        assert {one.device for one in parameters} == {card}
        assert {one.dtype for one in parameters} == {torch.float16}
        made = bitbrush.quantize(pipe, recipe, PROMPTS)
    for one, wanted in zip(made.outcome.layers, expected.outcome.layers, strict=True):
        assert torch.equal(one.weight.w_q, wanted.weight.w_q), one.name
        assert one.activations == wanted.activations, one.name


def test_work_of_another_device_is_not_gone_on_with(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = bitbrush.METHODS["pcr"].recipe(SMALL)
    bitbrush.quantize(tiny_pipe, recipe, PROMPTS, work=tmp_path / "work")
    with fake_card(monkeypatch) as card:
        tiny_pipe.to(card)
        with pytest.raises(ValueError, match="another device"):
            bitbrush.quantize(tiny_pipe, recipe, PROMPTS, work=tmp_path / "work")


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert find_device("cuda") == torch.device("cuda", 1)
    assert find_device("cuda:0") == torch.device("cuda", 0), "named by the user"
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"process 2 of this machine.*sees 2 GPUs"):
        find_device("cuda")


@pytest.mark.parametrize(
    ("name", "told"), [("gpu", "choose cpu, cuda"), ("cuda:x", "choose cpu, cuda"), ("cuda", "CUDA|cards")]
)
def test_devices_that_are_not_there_are_named(name: str, told: str) -> None:
    if name == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a card")
    with pytest.raises(ValueError, match=told):
        find_device(name)


def test_views_stay_views_when_they_are_away(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_card(monkeypatch) as card:
        x = torch.arange(12.0, device=card).view(3, 4)
        row, expected = x[1], [4.0, 5.0, 6.0, 7.0]
        IN_MEMORY.put([x, row])
        assert {x.device.type, row.device.type} == {"cpu"}
        assert row.tolist() == expected
        bring_to(card, [x, row])
        assert {x.device, row.device} == {card}
        x.add_(1)
        assert row.tolist() == [value + 1 for value in expected]
