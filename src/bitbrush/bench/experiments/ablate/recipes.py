"""Recipes of an ablation, each at every bit setting."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from bitbrush.bench.images.gallery import slug
from bitbrush.methods import DEFAULT_METHOD, METHODS
from bitbrush.methods.keys import named_value
from bitbrush.methods.recipe import Recipe, read_recipe
from bitbrush.session.digests import json_digest

USUAL_BITS = ("W8A8", "W4A8", "W4A6", "W4A4")
USUAL_RECIPES = tuple(name for name in METHODS if name != "paper")
"""Default recipes: all methods but the one whose rounding takes longer than all others together."""
RECIPE_SUFFIXES = (".toml", ".json")
OF_ALL = ("weights", "activations", "steps", "guidance_scale", "scheduler", "pipeline_arguments")
"""Keys that are the same for all recipes of an ablation."""


@dataclass(frozen=True)
class Bits:
    """Bit setting: average bits of weights, and bits of activations before relaxing."""

    weights: int
    activations: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses e.g. ``W4A8``.

        Raises:
            ValueError: The form is another, or no recipe can have these bits.
        """
        match = re.fullmatch(r"[Ww](\d+)[Aa](\d+)", text.strip())
        if match is None:
            raise ValueError(f"bits is {text!r}; expected W and A with their numbers, e.g. W4A8")
        bits = cls(int(match[1]), int(match[2]))
        METHODS["rtn"].recipe({"weights": bits.weights, "activations": bits.activations})
        return bits

    def __str__(self) -> str:
        return f"W{self.weights}A{self.activations}"


@dataclass(frozen=True)
class NamedRecipe:
    """Method with keys as in a recipe file, under the name that tables have.

    A ``relax`` that ends in ``+N`` counts from each setting's activation bits: ``0:0.2@+2``, ``auto:+0.4``.
    """

    name: str
    method: str
    keys: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses ``METHOD KEY=VALUE ...`` or ``FILE KEY=VALUE ...``, with an optional ``NAME:`` before.

        Values are read as JSON, or else as they stand; quotes are those of a shell. A FILE is a recipe file, TOML or
        JSON; the keys after it override its own. Without ``NAME:`` the name is the text, of a file alone its stem.

        Args:
            text: A recipe as the command line has it.

        Raises:
            ValueError: There is no such method or file, a file cannot be read, or a key is unknown or one that all
                recipes share.
        """
        named = re.match(r"\s*([^:=]+):\s+(.+)", text)
        name, rest = (named[1].strip(), named[2]) if named else (" ".join(text.split()), text)
        first, *pairs = shlex.split(rest) or [""]
        keys: dict[str, Any] = {"method": first}
        if Path(first).suffix in RECIPE_SUFFIXES:
            keys = {"method": DEFAULT_METHOD, **_file_keys(first, text)}
            name = name if named or pairs else Path(first).stem
        keys |= dict(_pair(pair, text) for pair in pairs)
        method = keys.pop("method")
        if method not in METHODS:
            raise ValueError(
                f"recipe {text!r}: {method!r} is no method; known are {', '.join(METHODS)}. "
                f"A file of keys ends in {' or '.join(RECIPE_SUFFIXES)}"
            )
        if shared := [key for key in keys if key in OF_ALL]:
            raise ValueError(
                f"recipe {text!r}: {shared[0]} is the same for all recipes; give it by the option "
                f"{_OPTIONS.get(shared[0], '--' + shared[0].replace('_', '-'))}, and leave it out here"
            )
        return cls(name, method, keys)

    def at(self, bits: Bits, shared: Mapping[str, Any]) -> Recipe:
        """Returns the recipe at a bit setting.

        Args:
            bits: Bit setting.
            shared: Keys that all recipes of the ablation have.

        Raises:
            ValueError: A key or value is invalid; the message names recipe and bits.
        """
        keys = {**shared, **self.keys, "weights": bits.weights, "activations": bits.activations}
        if "relax" in keys:
            keys["relax"] = _absolute(keys["relax"], bits.activations)
        try:
            return METHODS[self.method].recipe(keys)
        except (ValueError, TypeError) as error:
            raise ValueError(f"recipe {self.name!r} at {bits}: {error}") from error


_OPTIONS = {"weights": "--bits", "activations": "--bits", "pipeline_arguments": "--pipeline-argument"}


@dataclass(frozen=True)
class Setting:
    """Recipe of one cell."""

    bits: Bits
    name: str
    recipe: Recipe

    @property
    def title(self) -> str:
        """Bits and name, for messages."""
        return f"{self.bits} {self.name}"

    @property
    def file_name(self) -> str:
        """Start of the names of its files; another recipe of the same name has another."""
        digest = json_digest(given_keys(self.recipe))
        return f"{self.bits}-{slug(self.name)}-{digest[:10]}"


def settings(recipes: Sequence[NamedRecipe], bits: Sequence[Bits], shared: Mapping[str, Any]) -> tuple[Setting, ...]:
    """Lists every recipe at every bit setting, bits outermost.

    Raises:
        ValueError: Two recipes have the same name, or there is none.
    """
    names = [recipe.name for recipe in recipes]
    if not (recipes and bits):
        raise ValueError("there is nothing to compare: give recipes and bits")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two recipes are called {name!r}; give one a name of its own: 'NAME: {name}'")
    return tuple(Setting(setting, recipe.name, recipe.at(setting, shared)) for setting in bits for recipe in recipes)


def given_keys(recipe: Recipe) -> dict[str, Any]:
    """Returns the keys in which a recipe differs from a plain one, so that keys of later versions change nothing."""
    plain = Recipe().to_dict()
    return {key: value for key, value in recipe.to_dict().items() if value != plain.get(key)}


def _file_keys(path: str, text: str) -> dict[str, Any]:
    try:
        return read_recipe(Path(path))
    except ValueError as error:
        raise ValueError(f"recipe {text!r}: {error}") from error


def _pair(text: str, recipe: str) -> tuple[str, Any]:
    pair = named_value(text)
    if pair is None:
        raise ValueError(f"recipe {recipe!r}: {text!r} is no KEY=VALUE; e.g. pcr relax=none rounding=nearest")
    return pair


def _absolute(relax: Any, activations: int) -> Any:
    match = re.fullmatch(r"(.*[@:])\+([\d.]+)", relax) if isinstance(relax, str) else None
    return f"{match[1]}{activations + float(match[2]):g}" if match else relax
