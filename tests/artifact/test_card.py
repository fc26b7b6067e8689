"""The model card: figures from the manifest, and the command that makes the artifact again."""

import json
import re
import shlex
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from bitbrush import ModelOptions, Quantization, Recipe, read_manifest, save
from bitbrush.artifact.card import Measured, model_card, quantize_command
from bitbrush.artifact.license import source_license
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
    assert command.endswith("--exclude 'a*' --exclude b --high-precision c")


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
    assert "# `someone/tiny`, pcr W4A8\n" in card
    assert quantize_command(manifest) in card
    layers = manifest["layers"]
    quantized = len(layers) - sum(layer["excluded"] is not None for layer in layers)
    assert quantized < len(layers)
    for text in (f"{quantized} of {len(layers)} Conv2d", "pcr W4A8", "9.33 on average"):
        assert text in card


@pytest.mark.parametrize("name", ["tiny: a {test} & 'more'.safetensors", "../models/tiny", "<b>{{ tags }}</b>"])
def test_a_base_model_off_the_hub_is_in_the_text_alone(saved: Path, name: str) -> None:
    card = ModelCard(model_card({**read_manifest(saved), "base_model": name}))
    assert card.data.base_model is None
    assert card.data.get("base_model_relation") is None
    assert f"The denoiser of `{name}` quantized" in card.text


HOSTILE = (
    "a b; touch owned",
    "$(touch owned)",
    "`touch owned`",
    "'; touch owned; '",
    '"quoted" \\',
    "--overwrite",
    "-h",
    "```\n# heading\n```",
    "---\nbase_model: other/model\n---",
    "{{ tags }}",
    "line\nbreak",
    "<script>alert(1)</script>",
    "*",
    "null",
    "é \N{SNOWMAN}",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_shell_reads_back_what_the_manifest_holds(saved: Path, text: str) -> None:
    manifest = read_manifest(saved)
    manifest["base_model"] = text
    manifest["base_model_options"] = {"variant": text, "loras": [{"file": text, "scale": 0.5, "sha256": "0"}]}
    manifest["recipe"] |= {"exclude": [text], "high_precision": [text], "pipeline_arguments": {"prompt_2": text}}
    words = shlex.split(quantize_command(manifest))
    assert words[:3] == ["bitbrush", "quantize", f"./{text}" if text.startswith("-") else text]
    given = dict(zip(words[3::2], words[4::2], strict=True))
    assert given["--exclude"] == given["--high-precision"] == given["--variant"] == text
    assert given["--lora"] == f"{text}@0.5"
    pair = given["--pipeline-argument"]
    assert dict(Recipe().updated({"pipeline_arguments": [pair]}).pipeline_arguments) == {"prompt_2": text}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_recalibration_quotes_both_of_its_commands(saved: Path, text: str) -> None:
    manifest = read_manifest(saved)
    changed = {**manifest["recipe"], "pipeline_arguments": {"prompt_2": text}}
    manifest |= {"base_model": text, "recalibrated_from": {"recipe": manifest["recipe"]}, "recipe": changed}
    words = shlex.split(quantize_command(manifest))
    second = words.index("bitbrush", 1)
    assert words[second : second + 5] == ["bitbrush", "recalibrate", "DIR0", "-o", "DIR"]
    assert words[second + 5 :] == ["--pipeline-argument", f"prompt_2={json.dumps(text)}"]


@pytest.mark.parametrize("text", HOSTILE)
def test_the_cards_metadata_and_blocks_hold_no_more_than_the_plain_cards(saved: Path, text: str) -> None:
    manifest = read_manifest(saved)
    manifest["recipe"]["exclude"] = [text]
    plain, card = (ModelCard(model_card({**manifest, "base_model": name})) for name in ("someone/tiny", text))
    assert {**card.data.to_dict(), **BASE_MODEL} == {**plain.data.to_dict(), **BASE_MODEL}
    kinds = [token.split("\n", 1)[0] for token in _blocks(card.text)]
    assert kinds == [token.split("\n", 1)[0] for token in _blocks(plain.text)]
    assert quantize_command({**manifest, "base_model": text}) in _blocks(card.text)[-1]


BASE_MODEL = {"base_model": None, "base_model_relation": None}


def _blocks(markdown: str) -> list[str]:
    """The fenced blocks, as CommonMark delimits them: a fence is closed by one that is as long, or longer."""
    blocks, fence, lines = [], "", []
    for line in markdown.splitlines():
        ticks = re.match("`{3,}", line)
        if not fence and ticks:
            fence, lines = ticks[0], [line.lstrip("`")]
        elif fence and ticks and len(ticks[0]) >= len(fence) and not line.strip("`"):
            blocks.append("\n".join(lines))
            fence = ""
        elif fence:
            lines.append(line)
    assert not fence
    return blocks


CARDS = {
    "---\nlicense: openrail++\n---\n# x": {"license": "openrail++"},
    '---\r\nlicense: "other"\r\nlicense_name: flux-1-dev\r\nlicense_link: LICENSE.md\r\ntags: [a]\r\n---\r\n': {
        "license": "other",
        "license_name": "flux-1-dev",
        "license_link": "LICENSE.md",
    },
    "---\nlibrary_name: diffusers\n---\nlicense: in the text": None,
    "license: no front matter": None,
    "---\nlicense:\n  - a\n---\n": None,
}


@pytest.mark.parametrize("text", CARDS)
def test_the_licence_is_that_of_the_base_models_card(quantization: Quantization, tmp_path: Path, text: str) -> None:
    base = tmp_path / "base"
    quantization.source.save_pretrained(base)
    assert source_license(str(base), ModelOptions()) is None
    (base / "README.md").write_bytes(text.encode())
    expected = CARDS[text]
    assert source_license(str(base), ModelOptions()) == expected
    folder = save(quantization, tmp_path / "artifact", base_model=str(base))
    assert read_manifest(folder).get("base_model_license") == expected
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == (expected or {}).get("license")
    assert ("that of the base model |" in card.text) == bool(expected)


def test_a_bundled_models_licence_is_carried_over() -> None:
    assert source_license("emoji-sd", ModelOptions()) == {"license": "apache-2.0"}
    assert source_license("someone/nowhere", ModelOptions()) is None


def test_what_was_measured_is_on_the_card_alone_if_it_was(saved: Path) -> None:
    manifest = read_manifest(saved)
    plain = model_card(manifest)
    assert "What it kept" not in plain
    assert "| speed |" not in plain
    card = model_card(manifest, measured=Measured(speed="5 ms", table="| a |\n|---|\n| b |"))
    assert "| speed | 5 ms |\n| licence |" in card
    assert "## What it kept\n\n| a |" in card


def test_bits_are_counted_by_layer(saved: Path) -> None:
    manifest = read_manifest(saved)
    bits = [layer["weight_bits"] for layer in manifest["layers"] if layer["excluded"] is None]
    left = len(manifest["layers"]) - len(bits)
    row = f"| weight bits | 4 ({bits.count(4)} layers), 8 ({bits.count(8)} layers), floating point ({left} layers) |"
    assert row in model_card(manifest)
