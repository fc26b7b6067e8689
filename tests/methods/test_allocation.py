"""Measured bits: within their averages, carried through rounding, artifact, executor and resumption."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

import bitbrush
from bitbrush import Quantization
from bitbrush.calibration import sensitivity
from bitbrush.calibration.relaxing import MeasuredRelaxation
from bitbrush.methods import METHODS
from bitbrush.methods.recipe import Recipe
from bitbrush.network.layers import HIGH_PRECISION_ACTIVATION_BITS, HIGH_PRECISION_WEIGHT_BITS

PROMPTS = ("a red cat", "two blue dogs on the left")
KEYS = {"steps": 3, "num_prompts": 2, "rounding": "nearest", "relax": "auto:6.5", "weight_allocation": "measured"}


@pytest.fixture(autouse=True)
def _measure_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "PROBES", 1)


def recipe(method: str = "pcr", **keys: Any) -> Recipe:
    return METHODS[method].recipe(KEYS | keys)


def weight_bits(made: Quantization) -> dict[str, int]:
    return {layer.name: layer.weight.qparams.bits for layer in made.outcome.layers}


def high_precision_names(made: Quantization) -> set[str]:
    return {spec.name for spec in made.outcome.specs if spec.high_precision}


def test_averages_are_kept_and_layers_differ(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    made = bitbrush.quantize(tiny_pipe, recipe(), PROMPTS)
    high_precision, layers = high_precision_names(made), {layer.name: layer for layer in made.outcome.layers}
    inner = [layer for name, layer in layers.items() if name not in high_precision]
    sizes = torch.tensor([float(layer.weight.w_q.numel()) for layer in inner])
    bits = torch.tensor([float(layer.weight.qparams.bits) for layer in inner])
    assert 3.8 < float((bits * sizes).sum() / sizes.sum()) <= 4
    assert len(set(bits.tolist())) > 2
    assert 6.4 < made.average_activation_bits <= 6.5
    chosen = {qparams.bits for layer in inner for qparams in layer.activations.qparams}
    assert chosen <= {4, 6, 8, 10, 16}
    assert len(chosen) > 2
    timesteps = made.outcome.planned
    assert timesteps[1] == timesteps[2]  # PNDM's first; its calls lie in both halves, its bits are those of the first
    assert all(layer.activations.at(timesteps[1]).bits == layer.activations.at(timesteps[0]).bits for layer in inner)
    assert any(layer.activations.at(timesteps[3]).bits != layer.activations.at(timesteps[0]).bits for layer in inner)
    assert {layers[name].weight.qparams.bits for name in high_precision} == {HIGH_PRECISION_WEIGHT_BITS}
    assert {qparams.bits for name in high_precision for qparams in layers[name].activations.qparams} == {
        HIGH_PRECISION_ACTIVATION_BITS
    }

    saved = bitbrush.save(made, tmp_path / "a", base_model="someone/tiny")
    manifest = bitbrush.read_manifest(saved)
    assert {entry["name"]: entry["weight_bits"] for entry in manifest["layers"]} == weight_bits(made)
    assert manifest["plan"]["average_activation_bits"] == made.average_activation_bits
    assert Recipe().updated(manifest["recipe"]) == made.recipe
    again = bitbrush.load(saved, runtime="reference").unet
    sample, text = torch.ones(1, 4, 8, 8), torch.ones(1, 5, 16)
    timestep = torch.tensor(made.outcome.planned[0])
    assert torch.equal(again(sample, timestep, text)[0], made.pipeline().unet(sample, timestep, text)[0])


def test_weights_rounded_before_keep_their_bits(tiny_pipe: StableDiffusionPipeline) -> None:
    made = bitbrush.quantize(tiny_pipe, recipe(relax="none"), PROMPTS)
    again = bitbrush.quantize(tiny_pipe, recipe(relax="0.5:1@12"), PROMPTS, rounded=made.rounded)
    assert list(made.costs) == ["sensitivity", "rounding", "progressive_calibration"]
    assert list(again.costs) == ["progressive_calibration"]
    assert weight_bits(again) == weight_bits(made)


def test_eight_bits_on_average_are_eight_for_all(tiny_pipe: StableDiffusionPipeline) -> None:
    made = bitbrush.quantize(tiny_pipe, recipe("one-shot", weights=8, relax="none"), PROMPTS)
    assert "sensitivity" not in made.costs
    assert set(weight_bits(made).values()) == {8}


def test_measured_once_where_work_is_kept(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    first = bitbrush.quantize(tiny_pipe, recipe(), PROMPTS, work=tmp_path / "work")
    second = bitbrush.quantize(tiny_pipe, recipe(), PROMPTS, work=tmp_path / "work")
    assert first.costs["sensitivity"].denoiser_calls_per_batch > 0
    assert second.costs["sensitivity"].denoiser_calls_per_batch == 0
    assert weight_bits(second) == weight_bits(first)
    assert [layer.activations for layer in second.outcome.layers] == [
        layer.activations for layer in first.outcome.layers
    ]


def test_measured_relaxing_is_parsed_and_checked() -> None:
    made = METHODS["pcr"].recipe({"relax": "auto:8.2"})
    assert made.relax == MeasuredRelaxation(8.2)
    assert made.to_dict()["relax"] == "auto:8.2"
    for wrong, told in (("auto:", "expected auto:BITS"), ("auto:3", "4 to 16"), (8, "auto:BITS")):
        with pytest.raises(ValueError, match=told):
            METHODS["pcr"].recipe({"relax": wrong})


def test_rtn_has_nothing_to_relax_but_weights_to_measure(tiny_pipe: StableDiffusionPipeline) -> None:
    with pytest.raises(ValueError, match=r"relax is auto:6\.5, but rtn has one range for all steps"):
        bitbrush.quantize(tiny_pipe, recipe("rtn"), PROMPTS)
    made = bitbrush.quantize(tiny_pipe, recipe("rtn", relax="none"), PROMPTS)
    assert len(set(weight_bits(made).values())) > 2
