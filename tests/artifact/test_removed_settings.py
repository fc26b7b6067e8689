"""Artifacts and recipes of versions that had more settings: read where these changed nothing, refused by name else."""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import bitbrush
from bitbrush import METHODS, Quantization, Recipe
from bitbrush.artifact.denoiser import CONFIG, WEIGHTS, load_denoiser
from bitbrush.artifact.manifest import ArtifactError, read_manifest
from bitbrush.artifact.quantization_config import BitbrushConfig
from bitbrush.artifact.store import require_free
from bitbrush.methods.removed import KEYS, VALUES
from bitbrush.runtime.choose import RuntimeName, choose_runtime
from tests.artifact.in_integers import latents
from tests.artifact.pipelines import PROMPTS

REMOVED = [("output_means", "correct"), ("group_size", 64)]
REMOVED += [(key, value) for key, values in VALUES.items() for value in values]


@contextmanager
def edited(path: Path) -> Iterator[dict[str, Any]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    yield content
    path.write_text(json.dumps(content), encoding="utf-8")


@contextmanager
def recipe_of(folder: Path) -> Iterator[dict[str, Any]]:
    with edited(folder / "manifest.json") as manifest:
        yield manifest["recipe"]


def test_every_removed_setting_is_tried() -> None:
    assert {key for key, _ in REMOVED} == {*KEYS, *VALUES}


@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_with_values_that_change_nothing_is_the_recipe_without(method: str) -> None:
    recipe = METHODS[method].recipe()
    assert Recipe().updated({**recipe.to_dict(), **KEYS}) == recipe


@pytest.mark.parametrize(("key", "value"), REMOVED)
def test_a_recipe_with_another_value_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{key} = {value} was removed.*leave it out"):
        METHODS["pcr"].recipe({key: value})


def test_an_artifact_with_values_that_change_nothing_works_as_before(
    quantization: Quantization, artifact: Path
) -> None:
    with edited(artifact / "manifest.json") as manifest:
        manifest["recipe"] |= KEYS
        for entry in manifest["layers"]:
            entry["groups"] = 1
    assert torch.equal(latents(bitbrush.load(artifact, runtime="reference")), latents(quantization.pipeline()))
    assert bitbrush.recalibrate(artifact, {"steps": 2}, PROMPTS).recipe.steps == 2


@pytest.mark.parametrize(("key", "value"), [*REMOVED, ("step_sizes", "learned")])
def test_an_artifact_made_with_another_is_refused_with_the_command_that_makes_it_anew(
    artifact: Path, key: str, value: Any
) -> None:
    with recipe_of(artifact) as recipe:
        recipe |= {**KEYS, "method": "pcr", key: value}
    for read in (bitbrush.load, lambda folder: bitbrush.recalibrate(folder, {}, PROMPTS)):
        with pytest.raises(ArtifactError, match=f"was made with {key} = {value}, which this bitbrush has no more") as e:
            read(artifact)
    command = shlex.split(str(e.value).splitlines()[1])
    assert command[:2] == ["bitbrush", "quantize"]
    flags = dict(zip(command[5::2], command[6::2], strict=True))
    assert f"--{key.replace('_', '-')}" not in flags or flags[f"--{key.replace('_', '-')}"] != str(value)
    numbers = {"weights", "activations", "steps", "num_prompts", "batch_size", "seed"}
    keys = {flag.removeprefix("--").replace("-", "_"): text for flag, text in flags.items()}
    Recipe().updated({name: int(text) if name in numbers else text for name, text in keys.items()})
    require_free(artifact)  # it may be replaced


def test_learned_step_sizes_of_one_range_still_load(artifact: Path) -> None:
    with recipe_of(artifact) as recipe:
        recipe |= {"method": "qdiffusion", "relax": "none", "step_sizes": "learned"}
    bitbrush.load(artifact, runtime="reference")


def test_a_corrected_output_is_not_silently_left_uncorrected(artifact: Path) -> None:
    with edited(artifact / "unet" / CONFIG) as config:
        config["quantization_config"]["correction"] = {"timesteps": [1.0], "means": [[0.0] * 4]}
    with pytest.raises(ValueError, match="output is corrected"):
        load_denoiser(artifact / "unet", choose_runtime(RuntimeName.REFERENCE))
    with pytest.raises(ValueError, match="output is corrected"):
        BitbrushConfig.from_dict(dict(config["quantization_config"]))


def test_scales_of_groups_are_refused_by_layer(artifact: Path) -> None:
    path = artifact / "unet" / WEIGHTS
    tensors = load_file(path)
    for part in ("weight_scale", "weight_zero_point"):
        tensors[f"conv_out.{part}"] = tensors[f"conv_out.{part}"][:, None].repeat(1, 2)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="layer conv_out has scales for groups of its inputs"):
        load_denoiser(artifact / "unet", choose_runtime(RuntimeName.REFERENCE))


def test_a_key_of_an_earlier_name_is_read_by_its_name_of_today() -> None:
    assert Recipe().updated({"fine": ["conv_in"]}) == Recipe(high_precision=("conv_in",))


def test_an_artifact_with_earlier_names_works_as_before(artifact: Path) -> None:
    expected = read_manifest(artifact)
    with edited(artifact / "manifest.json") as manifest:
        manifest["recipe"]["fine"] = manifest["recipe"].pop("high_precision")
        for layer in manifest["layers"]:
            layer["edge"] = layer.pop("high_precision")
    assert read_manifest(artifact)["layers"] == expected["layers"]
    assert Recipe().updated(read_manifest(artifact)["recipe"]) == Recipe().updated(expected["recipe"])
    bitbrush.load(artifact, runtime="reference")
