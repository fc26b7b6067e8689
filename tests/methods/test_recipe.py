"""Recipes: read from plain values, written back, and nothing accepted that means nothing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbrush.calibration.relaxing import Relaxation
from bitbrush.methods.recipe import Recipe, Rounding, read_recipe
from bitbrush.numerics.limits import RangeEstimator, WeightRange
from bitbrush.timeline.plan import SamplingPlan

RECIPES = st.builds(
    Recipe,
    method=st.sampled_from(["pcr", "rtn", "one-shot"]),
    weights=st.integers(2, 8),
    activations=st.integers(4, 12),
    relax=st.none() | st.builds(Relaxation, st.sampled_from([0.0, 0.1, 0.25]), st.floats(0.3, 1), st.integers(13, 16)),
    rounding=st.sampled_from(list(Rounding)),
    weight_range=st.sampled_from(list(WeightRange)),
    activation_range=st.sampled_from(list(RangeEstimator)),
    exclude=st.lists(st.text("ab.*?", min_size=1), max_size=3).map(tuple),
    steps=st.integers(1, 100),
    guidance_scale=st.floats(0, 50),
    scheduler=st.sampled_from([None, "ddim", "EulerDiscreteScheduler"]),
    num_prompts=st.integers(1, 300),
    batch_size=st.integers(1, 64),
    seed=st.integers(0, 2**40),
)


@given(RECIPES)
def test_what_is_written_is_read_back(recipe: Recipe) -> None:
    keys = recipe.to_dict()
    assert Recipe().updated(keys) == recipe
    assert Recipe().updated(json.loads(json.dumps(keys))) == recipe
    assert Recipe(method="rtn", relax=Relaxation(0, 1, 16), scheduler="ddim").updated(keys) == recipe


def test_toml_and_json_files(tmp_path: Path) -> None:
    toml, as_json = tmp_path / "recipe.toml", tmp_path / "recipe.json"
    toml.write_text('weights = 3\nrelax = "0.8:1@10"\nexclude = ["*.attn2.*"]\nguidance_scale = 5\n', encoding="utf-8")
    as_json.write_text(json.dumps({"rounding": "learned", "relax": None, "exclude": "conv_in"}), encoding="utf-8")
    first = Recipe().updated(read_recipe(toml))
    assert first == Recipe(weights=3, relax=Relaxation(0.8, 1.0, 10), exclude=("*.attn2.*",), guidance_scale=5.0)
    assert first.updated(read_recipe(as_json)) == Recipe(
        weights=3, rounding=Rounding.LEARNED, exclude=("conv_in",), guidance_scale=5.0
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.toml", b"weights = "),
        ("a.json", b'{"weights": 4'),
        ("a.toml", b'method = "\xff"'),
        ("a.json", b"[4, 8]"),
        ("missing.toml", None),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"recipe .*{name} (cannot be read|holds a list)"):
        read_recipe(tmp_path / name)


def test_unknown_keys_are_named_with_the_known() -> None:
    with pytest.raises(ValueError, match=r"unknown recipe key 'w_bits' = 4; known are method, weights, .*, seed"):
        Recipe().updated({"weights": 4, "w_bits": 4})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("weights", 1, "weights is 1; it must be a whole number from 2 to 8"),
        ("weights", 9, "from 2 to 8"),
        ("weights", "4", "weights is '4'"),
        ("weights", True, "weights is True"),
        ("weights", 4.0, r"weights is 4\.0"),
        ("activations", 3, "activations is 3; it must be a whole number from 4 to 16"),
        ("activations", 17, "from 4 to 16"),
        ("relax", "0.8:1.0", "expected START:END@BITS"),
        ("relax", 0.2, r"relax is 0\.2; expected START:END@BITS"),
        ("relax", "0.8:1.0@8", "8 bits are no more than the 8 bits of the other steps"),
        ("relax", "0.8:1.0@6", "6 bits are no more than the 8"),
        ("rounding", "up", "rounding is 'up'; choose from nearest, learned"),
        ("weight_range", "l4", "choose from min-max, mse"),
        ("activation_range", 3, "activation_range is 3; choose from"),
        ("exclude", 5, "exclude is 5; it must be a list of patterns"),
        ("exclude", [5], r"exclude is \[5\]"),
        ("steps", 0, "steps is 0; it must be a whole number from 1 to "),
        ("steps", 2.5, r"steps is 2\.5"),
        ("steps", "50", "steps is '50'"),
        ("guidance_scale", -1, "guidance_scale is -1"),
        ("guidance_scale", "inf", "guidance_scale is 'inf'"),
        ("guidance_scale", "high", "guidance_scale is 'high'; it must be a finite number"),
        ("guidance_scale", None, "guidance_scale is None; it must be a finite number"),
        ("num_prompts", 0, "num_prompts is 0; it must be a whole number from 1 to "),
        ("batch_size", -1, "batch_size is -1"),
        ("seed", -1, "seed is -1; it must be a whole number from 0 to "),
        ("seed", None, "seed is None"),
    ],
)
def test_bad_values_are_named_with_the_limit(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe().updated({key: value})


def test_relaxed_bits_are_more_than_those_of_the_other_steps() -> None:
    recipe = Recipe(activations=8, relax=Relaxation(0.8, 1.0, 9))
    with pytest.raises(ValueError, match="9 bits are no more than the 9 bits"):
        recipe.updated({"activations": 9})
    assert recipe.updated({"activations": 9, "relax": "none"}).relax is None


def test_what_it_is_called_and_what_it_plans() -> None:
    recipe = Recipe(method="rtn", weights=3, activations=6, steps=7, guidance_scale=2.0, scheduler="ddim")
    assert recipe.name == "rtn W3A6"
    assert recipe.plan == SamplingPlan(7, 2.0, "ddim")


@pytest.mark.parametrize(
    "given",
    [
        {"height": 768, "skip_layers": [7, 8], "clean_caption": False, "negative_prompt": "blue"},
        ["height=768", "skip_layers=[7, 8]", "clean_caption=false", "negative_prompt=blue"],
    ],
    ids=["table", "strings"],
)
def test_pipeline_arguments_are_a_table_or_strings(given: object) -> None:
    recipe = Recipe().updated({"pipeline_arguments": given})
    arguments = dict(recipe.plan.arguments)
    assert arguments == {"height": 768, "skip_layers": (7, 8), "clean_caption": False, "negative_prompt": "blue"}
    assert Recipe().updated(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert hash(recipe) == hash(Recipe().updated(recipe.to_dict()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["height"], "pipeline argument is 'height'; expected NAME=VALUE, e.g. height=768"),
        (["=768"], "pipeline argument is '=768'; expected"),
        ({"height": {"a": 1}}, "pipeline argument height is {'a': 1}; it must be a number, a text"),
        (5, "pipeline_arguments is 5; expected a table, or NAME=VALUE"),
    ],
)
def test_other_pipeline_arguments_are_refused(given: object, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Recipe().updated({"pipeline_arguments": given})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("sigmas=14,7,2", (14, 7, 2)),
        ("sigmas=14.5, 7, 2e-1", (14.5, 7, 0.2)),
        ("sigmas=[14, 7]", (14, 7)),
        ("height=768", 768),
        ("aesthetic=a,b", "a,b"),
        ("size=1,b", "1,b"),
        ("negative_prompt=blurry, grey", "blurry, grey"),
        ("negative_prompt=1,2", "1,2"),
        ("negative_prompt=2024", "2024"),
        ("negative_prompt=null", "null"),
        ("negative_prompt=a=b", "a=b"),
        ("negative_prompt=", ""),
        ('negative_prompt_2="blue"', "blue"),
        ('prompt_3=["a", "b"]', ("a", "b")),
        ("prompt_2=[a, b]", "[a, b]"),
        ("prompt_2=[1, 2]", "[1, 2]"),
    ],
)
def test_values_on_the_command_line(text: str, value: object) -> None:
    recipe = Recipe().updated({"pipeline_arguments": [text]})
    assert recipe.pipeline_arguments == ((text.partition("=")[0], value),)
    assert Recipe().updated(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize("value", [3, [], ["a", 1], True])
def test_prompts_are_texts(value: object) -> None:
    with pytest.raises(ValueError, match=r"pipeline argument negative_prompt is .*; it must be a text, or a list of"):
        Recipe().updated({"pipeline_arguments": {"negative_prompt": value}})


def test_a_plan_with_some_of_its_keys_replaced() -> None:
    recipe = Recipe(steps=7, pipeline_arguments=(("height", 768), ("strength", 0.5)))
    plan = recipe.plan_with({"steps": None, "guidance_scale": 2, "pipeline_arguments": ["strength=0.25", "eta=1"]})
    assert plan == SamplingPlan(7, 2.0, None, (("height", 768), ("strength", 0.25), ("eta", 1)))
    assert recipe.plan_with({}) == recipe.plan
