"""The public face: what a person would guess, and the order of earlier versions."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import bitbrush
from bitbrush.methods.method import Method
from bitbrush.methods.pcr import WEIGHTS
from bitbrush.methods.recipe import Recipe
from bitbrush.methods.registry import Methods
from bitbrush.methods.stages.ranges import OBSERVE, RANGES_BY_STEP
from tests.artifact.pipelines import PROMPTS

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

KEYS = {"method": "one-shot", "weights": 5, "steps": 2, "num_prompts": 2}


def test_keys_recipes_and_files_say_the_same(tiny_pipe: "StableDiffusionPipeline", tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps({**KEYS, "weights": 3}), encoding="utf-8")
    recipe = bitbrush.METHODS["one-shot"].recipe(KEYS)
    made = [
        bitbrush.quantize(tiny_pipe, PROMPTS, **KEYS),
        bitbrush.quantize(tiny_pipe, PROMPTS, recipe),
        bitbrush.quantize(tiny_pipe, recipe, PROMPTS),
        bitbrush.quantize(tiny_pipe, PROMPTS, file, weights=5),
        bitbrush.quantize(tiny_pipe, PROMPTS, KEYS),
    ]
    assert [one.recipe for one in made] == [recipe] * 5


def test_a_quantization_is_used_and_saved(tiny_pipe: "StableDiffusionPipeline", tmp_path: Path) -> None:
    made = bitbrush.quantize(tiny_pipe, PROMPTS, **KEYS)
    assert made.pipeline()(PROMPTS[0], num_inference_steps=2).images
    with pytest.raises(ValueError, match="does not tell what it was loaded from; give base_model"):
        made.save(tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()
    assert made.save(tmp_path / "artifact", base_model="someone/tiny") == tmp_path / "artifact"
    assert bitbrush.read_manifest(tmp_path / "artifact")["base_model"] == "someone/tiny"
    again = bitbrush.recalibrate(tmp_path / "artifact", {"steps": 3}, PROMPTS)
    again.save(tmp_path / "again")
    assert bitbrush.read_manifest(tmp_path / "again")["base_model"] == "someone/tiny"


def test_a_loaded_pipeline_tells_what_it_was_loaded_from(tiny_pipe: "StableDiffusionPipeline", tmp_path: Path) -> None:
    tiny_pipe.save_pretrained(tmp_path / "model")
    pipe = bitbrush.load_full_precision(tmp_path / "model")
    bitbrush.quantize(pipe, PROMPTS, **KEYS).save(tmp_path / "artifact")
    assert bitbrush.read_manifest(tmp_path / "artifact")["base_model"] == "model"  # not its path


def test_what_is_no_recipe_is_refused(tiny_pipe: "StableDiffusionPipeline") -> None:
    with pytest.raises(ValueError, match="recipe is a list; give a Recipe, a table of its keys, or a file"):
        bitbrush.quantize(tiny_pipe, PROMPTS, list(PROMPTS))
    with pytest.raises(ValueError, match="unknown recipe key 'wieghts' = 4; known are method, weights"):
        bitbrush.quantize(tiny_pipe, PROMPTS, wieghts=4)


def test_a_method_of_ones_own_is_one_file(
    tiny_pipe: "StableDiffusionPipeline", monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method is a name, default keys, and stages; registered by a call, it is known by its name."""

    def defaults(activations: int) -> Recipe:
        return Recipe(method="coarse", activations=activations, weights=3, steps=2, num_prompts=2)

    methods = Methods()
    monkeypatch.setattr("bitbrush.methods.registry.METHODS", methods)
    monkeypatch.setattr("bitbrush.api.METHODS", methods)
    monkeypatch.setattr("bitbrush.quantization.quantize.METHODS", methods)
    methods.register(Method("coarse", defaults, (*WEIGHTS, OBSERVE, RANGES_BY_STEP)))
    made = bitbrush.quantize(tiny_pipe, PROMPTS, method="coarse")
    assert {layer.weight.qparams.bits for layer in made.outcome.layers} == {3, 8}  # 8: next to the latents
    assert list(made.costs) == ["rounding", "observation"]
    with pytest.raises(ValueError, match="method 'pcr' exists already"):
        methods.register(Method("pcr", defaults, ()))
