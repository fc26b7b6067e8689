"""No file of an artifact holds a path of the machine that made it."""

import json
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

import bitbrush
from bitbrush import Lora, ModelOptions
from bitbrush.artifact.local_paths import remove_local_paths
from bitbrush.artifact.origin import require_origin
from bitbrush.sources.model_names import portable_name

KEYS = {"steps": 2, "num_prompts": 1, "rounding": "nearest", "first_token": "quantized"}


def files_with(text: str, root: Path) -> list[str]:
    return [str(path) for path in root.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_an_artifact_holds_no_local_path(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "customer-name"
    model = secret / "model"
    tiny_pipe.save_pretrained(model)
    file = secret / "style.safetensors"
    save_file({"x": tiny_pipe.unet.conv_in.bias.detach().clone()}, file)
    options = ModelOptions(config=str(model), loras=(Lora(file, 0.5),))
    monkeypatch.chdir(secret)
    for number, name in enumerate((str(model), "./model", "../customer-name/model")):
        made = bitbrush.quantize(bitbrush.load_full_precision(name), ["a cat"], method="pcr", **KEYS)
        artifact = bitbrush.save(made, tmp_path / f"artifact-{number}", base_model=name, options=options)
        assert not files_with("customer-name", artifact)
        assert not files_with(str(Path.home()) + "/", artifact)
        assert bitbrush.read_manifest(artifact)["base_model"] == "model"
        assert bitbrush.read_manifest(artifact)["base_model_options"]["config"] == "model"
    again = bitbrush.recalibrate(artifact, {"steps": 3}, ["a cat"])
    assert not files_with("customer-name", bitbrush.save(again, tmp_path / "again"))
    bitbrush.load(tmp_path / "again")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("emoji-sd", "emoji-sd"),
        ("owner/model", "owner/model"),
        ("/srv/someone/models/sd15", "sd15"),
        ("../models/sd15/", "sd15"),
        ("~/sd15.safetensors", "sd15.safetensors"),
    ],
)
def test_a_model_is_recorded_by_a_portable_name(model: str, name: str) -> None:
    assert portable_name(model) == name


def test_a_folder_is_recorded_by_its_name_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "owner" / "model"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert portable_name("owner/model") == "model"  # the folder comes before a hub id of this name
    monkeypatch.chdir(folder)
    assert portable_name(".") == "model"


def test_origins_are_compared_by_portable_names() -> None:
    recorded = {"base_model": "/elsewhere/model", "base_model_digest": "a" * 64}
    with pytest.raises(ValueError, match="/here/model was changed since"):
        require_origin("dir", recorded, "/here/model", ModelOptions(), "b" * 64)


def test_only_paths_are_removed(tmp_path: Path) -> None:
    kept = {"_class_name": "X", "pad": "/", "unk_token": "<|end|>", "size": [1, 2], "nested": {"a": "b"}, "none": None}
    paths = {
        "_name_or_path": "owner/model",
        "name_or_path": "../x",
        "special_tokens_map_file": "/srv/someone/x.json",
        "tokenizer_file": "C:\\Users\\someone\\x.json",
    }
    path = tmp_path / "tokenizer" / "tokenizer_config.json"
    path.parent.mkdir()
    path.write_text(json.dumps({**kept, **paths, "deep": {"file": "/srv/x", "kept": 1}}), encoding="utf-8")
    vocabulary = tmp_path / "tokenizer" / "vocab.json"
    vocabulary.write_text('{"/home": 1}', encoding="utf-8")
    remove_local_paths(tmp_path)
    assert json.loads(path.read_text(encoding="utf-8")) == {**kept, "deep": {"kept": 1}}
    assert vocabulary.read_text(encoding="utf-8") == '{"/home": 1}'
