"""Scales for groups of inputs: by nearest and learned rounding, saved, loaded, run as the reference does and named."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

import bitbrush
from bitbrush import Recipe
from bitbrush.artifact.card import quantize_command
from bitbrush.runtime.interface import RuntimeUnavailable
from bitbrush.runtime.lowered import lowered_of
from tests.artifact.conftest import PROMPTS

KEYS = {"steps": 2, "num_prompts": 2, "rounding": "nearest", "group_size": 8}


def test_groups_divide_all_layers_that_are_wide_enough_but_the_edges(tiny_pipe: StableDiffusionPipeline) -> None:
    made = bitbrush.quantize(tiny_pipe, bitbrush.METHODS["one-shot"].recipe(KEYS), PROMPTS)
    for spec, layer in zip(made.outcome.specs, made.outcome.layers, strict=True):
        expected = 1 if spec.edge else {4: 1, 8: 1, 16: 2, 24: 3, 32: 4, 64: 8}[spec.shape[1]]
        assert layer.weight.grid.groups == spec.groups == expected
    assert {spec.groups for spec in made.outcome.specs} >= {1, 2, 4}


def test_weights_of_other_groups_are_refused(tiny_pipe: StableDiffusionPipeline) -> None:
    recipe = bitbrush.METHODS["one-shot"].recipe(KEYS)
    rounded = bitbrush.quantize(tiny_pipe, recipe.updated({"group_size": "none"}), PROMPTS).rounded
    with pytest.raises(ValueError, match=r"have 4 bits for layer \S+, the recipe has 4 bits in \d groups of inputs"):
        bitbrush.quantize(tiny_pipe, recipe, PROMPTS, rounded=rounded)


@pytest.mark.usefixtures("brief_rounding")
def test_learned_rounding_has_them_too_and_goes_on_where_it_was(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    keys = {**KEYS, "rounding": "learned", "exclude": ["up_blocks.*", "mid_block.*"]}
    recipe = bitbrush.METHODS["pcr"].recipe(keys)
    first, again = (bitbrush.quantize(tiny_pipe, recipe, PROMPTS, work=tmp_path / "work") for _ in range(2))
    assert {layer.weight.grid.groups for layer in first.outcome.layers} >= {1, 2}
    for a, b in zip(first.outcome.layers, again.outcome.layers, strict=True):
        assert torch.equal(a.weight.dequantize(), b.weight.dequantize())


def test_such_layers_run_as_the_reference_does_and_say_why(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    made = bitbrush.quantize(tiny_pipe, bitbrush.METHODS["one-shot"].recipe(KEYS), PROMPTS)
    folder = bitbrush.save(made, tmp_path / "artifact", base_model="tiny")
    assert "--group-size 8" in quantize_command(bitbrush.read_manifest(folder))
    outputs = []
    for runtime in ("reference", "onednn"):
        try:
            pipe = bitbrush.load(folder, runtime=runtime, dtype="float32")
        except RuntimeUnavailable as error:
            pytest.skip(str(error))
        with torch.no_grad():
            outputs.append(pipe.unet(torch.ones(1, 4, 8, 8), 501, torch.ones(1, 3, 16), return_dict=False)[0])
    lowered = lowered_of(pipe.unet)
    assert lowered is not None
    in_floating_point = {one.layer for one in lowered.executions if "groups of their inputs" in str(one.fallback)}
    assert in_floating_point == {spec.name for spec in made.outcome.specs if spec.groups > 1}
    assert (outputs[0] - outputs[1]).abs().max() <= 1e-4 * outputs[0].abs().max()


@pytest.mark.parametrize("value", [4, "4", "many", 8.5])
def test_sizes_that_make_no_group_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"group_size is .*; it must be a whole number at least 8"):
        Recipe().updated({"group_size": value})


def test_none_and_numbers_are_read_as_they_are_written() -> None:
    assert [Recipe().updated({"group_size": v}).group_size for v in ("none", None, "64", 64)] == [None, None, 64, 64]
    assert Recipe().updated(Recipe().updated({"group_size": 64}).to_dict()).group_size == 64
    assert Recipe().updated(Recipe().to_dict()).group_size is None
