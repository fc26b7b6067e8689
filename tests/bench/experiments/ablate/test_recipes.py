"""Recipes of an ablation as people write them, and which of them have the same weights."""

import re
from pathlib import Path
from typing import Any

import pytest

from bitbrush.bench.experiments.ablate.folder import weights_key
from bitbrush.bench.experiments.ablate.recipes import (
    Bits,
    NamedRecipe,
    given_keys,
    settings,
)
from bitbrush.methods import METHODS
from bitbrush.methods.keys import Decides
from bitbrush.methods.recipe import KEYS


def at(text: str, bits: str = "W4A6"):
    return NamedRecipe.parse(text).at(Bits.parse(bits), {})


@pytest.mark.parametrize(
    ("text", "name", "method", "keys"),
    [
        ("best", "best", "best", {}),
        ("paper: pcr relax=0:0.2@10", "paper", "pcr", {"relax": "0:0.2@10"}),
        ("pcr  relax=none rounding=nearest", "pcr relax=none rounding=nearest", "pcr", None),
        ("q: rtn exclude='[\"a\", \"b c\"]' num_prompts=4", "q", "rtn", {"exclude": ["a", "b c"], "num_prompts": 4}),
    ],
)  # fmt: skip
def test_written_as_method_and_keys(text: str, name: str, method: str, keys: dict | None) -> None:
    parsed = NamedRecipe.parse(text)
    assert (parsed.name, parsed.method) == (name, method)
    assert keys is None or parsed.keys == keys


@pytest.mark.parametrize(
    ("relax", "absolute"), [("0:0.2@+2", "0:0.2@8"), ("auto:+0.4", "auto:6.4"), ("0:1@10", "0:1@10"), ("none", "none")]
)
def test_relaxing_may_be_told_from_the_bits_of_the_setting(relax: str, absolute: str) -> None:
    assert at(f"pcr relax={relax}").to_dict()["relax"] == absolute


def test_a_method_without_keys_is_the_methods_own_recipe_at_the_bits() -> None:
    for name, method in METHODS.items():
        assert at(name) == method.recipe({"weights": 4, "activations": 6})


def test_files_are_named_by_what_decides_the_recipe() -> None:
    recipes = [NamedRecipe.parse(text) for text in ("a: pcr", "b: pcr relax=none")]
    made = settings(recipes, [Bits(8, 8), Bits(4, 8)], {"steps": 7})
    assert [one.title for one in made] == ["W8A8 a", "W8A8 b", "W4A8 a", "W4A8 b"]
    assert {one.recipe.steps for one in made} == {7}
    assert len({one.file_name for one in made}) == 4
    (again,) = settings([NamedRecipe.parse("a: pcr relax=none")], [Bits(8, 8)], {"steps": 7})
    assert again.title == made[0].title
    assert again.file_name != made[0].file_name


def test_keys_that_are_as_in_a_plain_recipe_decide_nothing() -> None:
    """So cells stay valid when a later version has further keys."""
    assert "exclude" not in given_keys(at("pcr"))
    assert given_keys(at("rtn"))["weight_range"] == "min-max"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("pcr", "one-shot rounding=learned", True),
        ("pcr", "pcr relax=none activation_range=mse", True),
        ("pcr", "pcr first_token=known", True),
        ("pcr", "pcr smoothing=smoothquant", False),
        ("pcr", "pcr rounding=nearest", False),
        ("pcr", "pcr exclude=conv", False),
        ("pcr", "best", False),
        ("best", "pcr weight_allocation=measured low_rank=16", True),
        ("best", "best low_rank=none", False),
        ("best", "best first_token=known", False),  # which layers have no branches
        ("rtn", "rtn step_sizes=learned", True),
        ("best", "best activation_range=mse", False),  # the measurement quantizes activations
    ],
)
def test_recipes_with_the_same_weights(one: str, other: str, same: bool) -> None:
    assert (weights_key(at(one)) == weights_key(at(other))) is same


def test_weights_do_not_depend_on_activation_bits_unless_measured() -> None:
    assert weights_key(at("pcr", "W4A8")) == weights_key(at("pcr", "W4A4"))
    assert weights_key(at("pcr", "W4A8")) != weights_key(at("pcr", "W8A8"))
    assert weights_key(at("best", "W4A8")) != weights_key(at("best", "W4A4"))
    assert weights_key(at("smoothquant")) is None  # has rescaled them


def test_weights_are_shared_where_no_key_changes_the_network() -> None:
    assert all(isinstance(declared.decides, Decides) for declared in KEYS.values())
    assert weights_key(at("pcr skip_inputs=split")) is None
    assert weights_key(at("pcr smoothing=smoothquant")) is None
    assert weights_key(at("pcr first_token=known")) == weights_key(at("pcr"))
    assert weights_key(at("pcr low_rank=4 first_token=known")) != weights_key(at("pcr low_rank=4"))


@pytest.mark.parametrize(
    ("text", "name", "method", "keys"),
    [
        ("{0}/mine.toml", "mine", "pcr", {"relax": "none", "num_prompts": 4}),
        ("{0}/mine.toml relax=0:0.2@+2", None, "pcr", {"relax": "0:0.2@+2", "num_prompts": 4}),
        ("other: {0}/plain.json", "other", "best", {"rounding": "nearest"}),
    ],
)
def test_recipe_files(text: str, name: str | None, method: str, keys: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('method = "pcr"\nrelax = "none"\nnum_prompts = 4\n')
    (tmp_path / "plain.json").write_text('{"rounding": "nearest"}')
    text = text.format(tmp_path)
    assert NamedRecipe.parse(text) == NamedRecipe(name or text, method, keys)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("relax = ", "cannot be read"),
        ("weights = 4", "weights is the same for all recipes; give it by the option --bits, and leave it out here"),
        ('method = "pcrr"', "'pcrr' is no method; known are pcr"),
        ("relaxx = 1", "unknown recipe key 'relaxx'"),
        ("relax = 7", "relax"),
    ],
)
def test_recipe_files_that_do_not_fit(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=rf"recipe '.*mine.*{re.escape(message)}"):
        NamedRecipe.parse(str(path)).at(Bits(4, 8), {})
