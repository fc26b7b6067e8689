"""The model card: figures from the manifest, and the command that makes the artifact again."""

import shlex
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from bitbrush import Recipe, read_manifest
from bitbrush.artifact.card import model_card, quantize_command
from bitbrush.artifact.manifest import manifest_digest


def test_the_command_holds_every_key_of_the_recipe(saved: Path) -> None:
    manifest = read_manifest(saved)
    command = quantize_command(manifest)
    assert command.startswith("bitbrush quantize someone/tiny -o DIR --method pcr --weights 4 --activations 8 ")
    words = command.split()
    assert manifest["recipe"].pop("pipeline_arguments") == {}
    assert manifest["recipe"].pop("high_precision") == []
    for key, value in manifest["recipe"].items():
        given = words[words.index(f"--{key.replace('_', '-')}") + 1]
        assert given == ("'*.attn2.to_k'" if key == "exclude" else str(value))


def test_the_command_leaves_out_what_is_the_pipelines_own(saved: Path) -> None:
    manifest = read_manifest(saved)
    manifest["recipe"] |= {"scheduler": "own", "exclude": ["a*", "b"], "high_precision": ["c"]}
    command = quantize_command(manifest)
    assert "--scheduler" not in command
    assert command.endswith("--exclude 'a*' --exclude 'b' --high-precision 'c'")


def test_the_command_holds_what_the_pipeline_was_given(saved: Path) -> None:
    manifest = read_manifest(saved)
    manifest["recipe"]["pipeline_arguments"] = {"height": 768, "skip_layers": [7, 8]}
    manifest["denoiser"]["family"] = "generic"
    words = shlex.split(quantize_command(manifest))
    given = [words[i + 1] for i, word in enumerate(words) if word == "--pipeline-argument"]
    assert Recipe().updated({"pipeline_arguments": given}).pipeline_arguments == (
        ("height", 768),
        ("skip_layers", (7, 8)),
    )
    assert "--generic" in words


def test_the_card_says_what_it_is(saved: Path) -> None:
    manifest = read_manifest(saved)
    card = (saved / "README.md").read_text(encoding="utf-8")
    assert card == model_card(manifest, manifest_digest(saved))
    assert manifest_digest(saved) in card
    data = ModelCard(card).data
    assert (data.base_model, data.get("base_model_relation")) == ("someone/tiny", "quantized")
    assert (data.library_name, data.pipeline_tag) == ("diffusers", "text-to-image")
    assert data.tags == ["bitbrush", "quantized"]
    assert "# someone/tiny, pcr W4A8\n" in card
    assert quantize_command(manifest) in card
    layers = manifest["layers"]
    quantized = len(layers) - sum(layer["excluded"] is not None for layer in layers)
    assert quantized < len(layers)
    for text in (f"{quantized} of {len(layers)} Conv2d", "pcr W4A8", "9.33 activation bits"):
        assert text in card


@pytest.mark.parametrize("name", ["tiny: a {test} & 'more'.safetensors", "../models/tiny", "<b>{{ tags }}</b>"])
def test_a_base_model_off_the_hub_is_in_the_text_alone(saved: Path, name: str) -> None:
    card = ModelCard(model_card({**read_manifest(saved), "base_model": name}))
    assert card.data.base_model is None
    assert card.data.get("base_model_relation") is None
    assert f"The denoiser of `{name}` quantized" in card.text
