"""What loads is an artifact: exactly its files, documents that fit their classes, tensors that a quantization gives."""

import inspect
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, PretrainedConfig

import bitbrush
from benchmarks.reliability import artifacts
from benchmarks.reliability.trial import rehash
from bitbrush.artifact import folder as folder_module
from bitbrush.artifact.documents import MAX_DEPTH, ArtifactError, parse
from bitbrush.artifact.folder import verified
from bitbrush.artifact.manifest import manifest_digest, read_manifest
from bitbrush.artifact.store import verify
from bitbrush.sources import networks
from tests.artifact.pipelines import CASES, pipeline, quantized

TOKENS = {"pad_token_id", "bos_token_id", "eos_token_id"}
"""Settings that transformers 4 writes where they are not the default."""


@contextmanager
def edited(folder: Path, name: str, *, hashed: bool = True) -> Iterator[Any]:
    """A document, to be changed in place; then the hashes follow."""
    document = json.loads((folder / name).read_text(encoding="utf-8"))
    yield document
    (folder / name).write_text(json.dumps(document), encoding="utf-8")
    if hashed and name != "manifest.json":
        rehash(folder)


@pytest.mark.parametrize("kind", artifacts.WRONG)
def test_a_wrong_artifact_is_refused(artifact: Path, kind: str) -> None:
    for seed in range(2):
        (artifact.parent / str(seed)).mkdir()
        copy = artifact.parent / str(seed) / "artifact"
        shutil.copytree(artifact, copy)
        artifacts.WRONG[kind](copy, random.Random(seed))
        with pytest.raises(ArtifactError):
            bitbrush.load(copy, runtime="reference")


@pytest.mark.parametrize("kind", [*artifacts.HARMLESS, *artifacts.ANOTHER])
def test_a_harmless_change_or_another_artifact_loads(artifact: Path, kind: str) -> None:
    before = manifest_digest(artifact)
    artifacts.KINDS[kind](artifact, random.Random(0))
    bitbrush.load(artifact, runtime="reference")
    assert (manifest_digest(artifact) == before) == (kind in artifacts.HARMLESS)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"a": 1, "a": 2}', "key 'a' occurs twice"),
        (b'{"b": {"a": 1, "c": 0, "a": 1}}', "key 'a' occurs twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nested deeper"),
        (b"[" * 100_000 + b"]" * 100_000, "nested deeper"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b'{"a": "\xff"}', "invalid start byte"),
        ("{}".encode("utf-16"), "invalid"),
        (b"{", "Expecting"),
        (b"", "Expecting"),
    ],
)
def test_json_is_strict(content: bytes, reason: str) -> None:
    with pytest.raises(ArtifactError, match=rf"some\.json is damaged: .*{reason}"):
        parse(content, Path("some.json"))


def test_what_json_may_hold_is_read() -> None:
    text = b'{"a": [1, -Infinity, "\\ud83d\\ude00", null], "b": {"c": 1e-400}}'
    assert parse(text, Path("some.json")) == {"a": [1, float("-inf"), "😀", None], "b": {"c": 0.0}}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda m: m.pop("files"), "files"),
        (lambda m: m["files"].clear(), r"\$\.files"),
        (lambda m: m["files"].update({"unet/config.json": "0"}), r"\$\.files"),
        (lambda m: m.update(schema_version="1"), r"\$\.schema_version"),
        (lambda m: m["layers"][3].update(weight_bits=1.5), r"\$\.layers\[3\]\.weight_bits"),
        (lambda m: m["layers"][0].update(shape=[]), r"\$\.layers\[0\]\.shape"),
        (lambda m: m["layers"].append(m["layers"][0]), "layers lists a name twice"),
        (lambda m: m.update(layers={}), r"\$\.layers"),
        (lambda m: m["plan"].pop("timesteps"), r"timesteps.*\$\.plan"),
        (lambda m: m["plan"].update(timesteps=["a"]), r"\$\.plan\.timesteps\[0\]"),
        (lambda m: m["denoiser"].update(component="../unet"), r"\$\.denoiser\.component"),
        (lambda m: m["denoiser"].update(bytes=2**70), r"\$\.denoiser\.bytes"),
        (lambda m: m.update(cost=[]), r"\$\.cost"),
        (lambda m: m.update(recipe=None), r"\$\.recipe"),
        (lambda m: m["recipe"].update(steps="many"), "recipe: steps"),
        (lambda m: m["recipe"].update(nonsense=1), "recipe: unknown recipe key 'nonsense'"),
        (lambda m: m.update(base_model_options={"loras": [{"file": "a"}]}), r"\$\.base_model_options\.loras\[0\]"),
    ],
)
def test_a_field_of_the_manifest_is_named(artifact: Path, change: Callable[[Any], None], field: str) -> None:
    with edited(artifact, "manifest.json") as manifest:
        change(manifest)
    with pytest.raises(ArtifactError, match=rf"manifest\.json is damaged: .*{field}"):
        verify(artifact)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model_index.json", {"_class_name": ["pipeline", "Mine"]}, "_class_name"),
        ("model_index.json", {"_class_name": "UNet2DConditionModel"}, "which is no pipeline"),
        ("model_index.json", {"_module": "os"}, "_module"),
        ("model_index.json", {"vae": ["os", "system"]}, "'system' of 'os'"),
        ("model_index.json", {"vae": ["diffusers.models", "AutoencoderKL"]}, "of 'diffusers.models'"),
        ("model_index.json", {"vae": ["transformers", "pipeline"]}, "'pipeline' of 'transformers'"),
        ("model_index.json", {"vae": ["diffusers", "StableDiffusionPipeline"]}, "no network, scheduler"),
        ("model_index.json", {"vae": ["pipelines", "DiffusionPipeline"]}, "no network, scheduler"),
        ("model_index.json", {"vae": [None, "AutoencoderKL"]}, "a list of library and class"),
        ("model_index.json", {"vae": {"library": "diffusers"}}, "a list of library and class"),
        ("model_index.json", {"image_encoder_9": ["transformers", "CLIPTextModel"]}, "no argument of"),
        ("model_index.json", {"unet": [None, None]}, "lists no unet"),
        ("unet/config.json", {"_class_name": "AutoencoderKL"}, "lists UNet2DConditionModel"),
        ("unet/config.json", {"act_fn": 5}, "act_fn is 5; str is expected"),
        ("unet/config.json", {"block_out_channels": [8, "16"]}, "block_out_channels"),
        ("unet/config.json", {"block_out_channels": []}, "block_out_channels is empty"),
        ("unet/config.json", {"norm_eps": float("inf")}, "norm_eps is inf; a finite number of"),
        ("unet/config.json", {"layers_per_block": 2**40}, "layers_per_block .* at most"),
        ("unet/config.json", {"layers_per_block": 2**20}, "a larger network than its files hold"),
        ("unet/config.json", {"layers_per_block": 2}, "size mismatch"),
        ("unet/config.json", {"auto_map": {"AutoModel": "a.b"}}, "auto_map is set, which runs other code"),
        ("unet/config.json", {"quantization_config": {"weight_bits": {}}}, "quantization_config is damaged"),
        ("unet/config.json", {"quantization_config": None}, "quantization_config is damaged"),
        ("vae/config.json", {"quantization_config": {"quant_method": "gguf"}}, "quantization_config is set"),
        ("vae/config.json", {"scaling_factor": "0.18"}, "scaling_factor is '0.18'; .*float"),
        ("vae/config.json", {"scaling_factor": 0}, "scaling_factor is 0; a positive number"),
        ("vae/config.json", {"scaling_factor": 1e-300}, "scaling_factor is 1e-300; a finite number of a usual"),
        ("text_encoder/config.json", {"layer_norm_eps": -0.5}, "layer_norm_eps is -0.5; a positive"),
        ("text_encoder/config.json", {"vocab_size": 10}, "10|embeddings"),
        ("text_encoder/config.json", {"attention_dropout": 1, "initializer_range": 1}, "initializer_range"),
        ("text_encoder/config.json", {"layer_norm_eps": None}, "layer_norm_eps is None; a positive"),
        ("vae/config.json", {"norm_num_groups": 0}, "ZeroDivisionError|num_groups"),
        ("text_encoder/config.json", {"model_type": "t5"}, "model_type is 't5'"),
        ("text_encoder/config.json", {"_attn_implementation": "someone/kernel"}, "runs other code"),
        ("text_encoder/config.json", {"num_hidden_layers": 2**23}, "a larger network"),
        ("text_encoder/config.json", {"hidden_act": "nothing"}, "nothing"),
        ("text_encoder/config.json", {"vocab_size": "many"}, "vocab_size"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "nothing"}, "nothing"),
        ("scheduler/scheduler_config.json", {"prediction_type": "nothing"}, "prediction_type"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}, "scheduler|size|index"),
        ("scheduler/scheduler_config.json", {"beta_end": 1e300}, "."),
        ("tokenizer/tokenizer_config.json", {"auto_map": {}}, "auto_map"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": "long"}, "model_max_length"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 32_000}, "model_max_length 32000"),
        ("tokenizer/tokenizer.json", {"model": {"type": "Nothing"}}, "."),
        ("tokenizer/tokenizer.json", {"pre_tokenizer": 3}, "."),
    ],
)
def test_a_document_that_does_not_fit_its_class_is_refused(
    artifact: Path, name: str, change: dict[str, Any], message: str
) -> None:
    with edited(artifact, name) as document:
        document.update(change)
    with pytest.raises(ArtifactError, match=message):
        bitbrush.load(artifact, runtime="reference")


def test_recalibration_verifies_as_loading_does(artifact: Path) -> None:
    with edited(artifact, "vae/config.json") as document:
        document["latent_channels"] = "4"
    with pytest.raises(ArtifactError, match=r"vae/config\.json: latent_channels is '4'; int is expected"):
        bitbrush.recalibrate(artifact, {}, ["a cat"])


def test_infinity_is_a_schedulers_default(artifact: Path) -> None:
    """DPM-Solver writes it; nothing else may have it."""
    with edited(artifact, "model_index.json") as index:
        index["scheduler"] = ["diffusers", "DPMSolverMultistepScheduler"]
    scheduler = bitbrush.load_full_precision("emoji-sd").scheduler
    from diffusers import DPMSolverMultistepScheduler

    DPMSolverMultistepScheduler.from_config(scheduler.config).save_pretrained(artifact / "scheduler")
    rehash(artifact)
    assert "Infinity" in (artifact / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8")
    bitbrush.load(artifact, runtime="reference")


def test_shards_that_an_index_lists_load(artifact: Path) -> None:
    pipe: StableDiffusionPipeline = bitbrush.load(artifact, runtime="reference")
    for path in (artifact / "vae").iterdir():
        path.unlink()
    pipe.vae.save_pretrained(artifact / "vae", max_shard_size="20KB")
    rehash(artifact)
    assert len(list((artifact / "vae").glob("*-of-*.safetensors"))) > 1
    again = bitbrush.load(artifact, runtime="reference").vae.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in pipe.vae.state_dict().items())


@pytest.mark.parametrize("change", ["written", "replaced", "removed"])
def test_what_changes_while_it_is_read_is_refused(artifact: Path, change: str) -> None:
    path = artifact / "vae" / "config.json"
    content = path.read_bytes()
    with (  # noqa: PT012 - the change is what the reader would meet
        pytest.raises(ArtifactError, match=r"vae/config\.json changed while it was read"),
        verified(artifact, read_manifest(artifact)["files"]),
    ):
        if change == "replaced":
            path.with_name("new").write_bytes(content)
            path.with_name("new").replace(path)
        elif change == "removed":
            path.unlink()
        else:
            path.write_bytes(content.replace(b"4", b"8"))


def test_the_hub_may_not_ask_for_other_files(artifact: Path) -> None:
    for name in ("*", "unet/*.py", "../other/config.json", "unet/a/config.json"):
        with pytest.raises(ArtifactError, match="is no file of a pipeline"):
            folder_module.require_known_names(artifact, [name])


def test_a_diffusers_that_runs_code_from_folders_is_refused(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks.diffusers, "__version__", "0.37.1")
    with pytest.raises(ValueError, match=r"diffusers is 0\.37\.1, which runs Python files .* install diffusers>=0\.38"):
        bitbrush.load(artifact, runtime="reference")


def test_the_digest_is_that_of_the_manifest(artifact: Path) -> None:
    before = manifest_digest(artifact)
    assert before in (artifact / "README.md").read_text(encoding="utf-8")
    assert verify(artifact)["files"]
    with edited(artifact, "manifest.json") as manifest:
        manifest["recipe"]["guidance_scale"] = 3.0
    assert manifest_digest(artifact) != before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFO here")
@pytest.mark.parametrize("name", ["manifest.json", "model_index.json", "unet/config.json"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_regular_file_is_refused(artifact: Path, name: str, make: Callable[[Path], None]) -> None:
    (artifact / name).unlink()
    make(artifact / name)
    with pytest.raises(ArtifactError, match=r"no regular file|is not listed|is missing|leads out"):
        verify(artifact)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(encryption="none"),
        lambda m: m["denoiser"].update(rotation=True),
        lambda m: m["layers"][2].update(codebook=[1]),
        lambda m: m["plan"].update(solver="dpm"),
    ],
)
def test_a_key_of_the_manifest_that_no_version_knows_is_refused(artifact: Path, change: Callable[[Any], None]) -> None:
    with edited(artifact, "manifest.json") as manifest:
        change(manifest)
        versions = manifest["versions"]
    key = r"\$\.(encryption|denoiser\.rotation|layers\[2\]\.codebook|plan\.solver)"
    with pytest.raises(ArtifactError, match=rf"{key} is no key that bitbrush {versions['bitbrush']} writes"):
        verify(artifact)
    with edited(artifact, "manifest.json") as manifest:
        manifest["versions"]["bitbrush"] = "99.1"
    with pytest.raises(
        ArtifactError, match=rf"written by a newer bitbrush, 99\.1, and .* \({key}.*\); upgrade bitbrush$"
    ):
        verify(artifact)


NEWER = (
    lambda m: m["layers"][2].update(weight_bits=99),
    lambda m: m["layers"][2].pop("excluded"),
    lambda m: m.update(layers={"conv_in": {}}),
    lambda m: m["plan"].update(timesteps="trailing"),
    lambda m: m.pop("cost"),
    lambda m: m["recipe"].update(codebook="e8"),
    lambda m: m["recipe"].update(rounding="lattice"),
    lambda m: m.update(files=[]),
)


@pytest.mark.parametrize("change", NEWER)
@pytest.mark.parametrize("schema", [1, 2.5])
def test_what_breaks_the_schema_of_this_version_is_not_damage_of_a_newer_one(
    artifact: Path, change: Callable[[Any], None], schema: float
) -> None:
    with edited(artifact, "manifest.json") as manifest:
        change(manifest)
        manifest["schema_version"] = schema
        manifest["versions"]["bitbrush"] = "99.1"
    message = r"manifest\.json was written by a newer bitbrush.*; upgrade bitbrush$"
    for read in (verify, bitbrush.load, diffusers.DiffusionPipeline.from_pretrained):
        with pytest.raises(ArtifactError, match=message):
            read(artifact)


@pytest.mark.parametrize("versions", [None, [], {}, {"bitbrush": 99}, {"bitbrush": "new"}])
def test_without_a_version_that_is_newer_it_is_damage(artifact: Path, versions: Any) -> None:
    with edited(artifact, "manifest.json") as manifest:
        manifest.pop("cost")
        manifest["versions"] = versions
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged: "):
        verify(artifact)


def test_a_key_of_the_quantization_that_no_version_knows_is_refused(artifact: Path) -> None:
    with edited(artifact, "unet/config.json") as config:
        config["quantization_config"]["rotation"] = "hadamard"
    with pytest.raises(ArtifactError, match=r"unet/config\.json is damaged: quantization_config\.rotation is no key"):
        verify(artifact)
    with edited(artifact, "manifest.json") as manifest:
        manifest["versions"]["bitbrush"] = "99.1"
    with pytest.raises(
        ArtifactError, match=r"unet/config\.json was written by a newer bitbrush, 99\.1, and .*rotation"
    ):
        verify(artifact)


@pytest.mark.parametrize(
    "name", ["unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"]
)
def test_a_setting_that_its_library_writes_may_not_be_missing(artifact: Path, name: str) -> None:
    """Its default would stand in for it: another image, or an error in the middle of the call."""
    complete = json.loads((artifact / name).read_text(encoding="utf-8"))
    kind = getattr(diffusers, complete["_class_name"]) if "_class_name" in complete else CLIPTextConfig
    keys = complete.keys() & set(inspect.signature(kind).parameters) - PretrainedConfig().to_dict().keys() - TOKENS
    assert len(keys) > 8
    for key in keys:
        with edited(artifact, name) as config:
            config.clear()
            config.update({other: value for other, value in complete.items() if other != key})
        with pytest.raises(ArtifactError, match=key):
            verify(artifact)


def test_a_setting_that_a_later_library_added_may_be_missing(artifact: Path) -> None:
    with edited(artifact, "unet/config.json") as config:
        assert config.pop("time_embedding_act_fn") is None  # the default
    with edited(artifact, "manifest.json") as manifest:
        manifest["versions"]["diffusers"] = "0.38.0"
    verify(artifact)


def test_a_path_that_does_not_exist_is_named_as_such(artifact: Path) -> None:
    near = artifact.with_name("artifcat")
    with pytest.raises(ArtifactError, match=r"artifcat is no .*: it does not exist; did you mean .*artifact'"):
        verify(near)
    with pytest.raises(ArtifactError, match=r"README\.md is no bitbrush artifact: it is no folder"):
        verify(artifact / "README.md")
    near.mkdir()
    with pytest.raises(ArtifactError, match=r"artifcat is no bitbrush artifact: it has no manifest\.json$"):
        verify(near)


def test_weights_that_overflow_are_refused(artifact: Path) -> None:
    """They are finite, and images made of them are NaN."""
    path = artifact / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if "position_embedding.weight" in key)
    tensors[key][0, 0] = 4e20
    save_file(tensors, path, metadata={"format": "pt"})
    rehash(artifact)
    with pytest.raises(ArtifactError, match=r"text_encoder .* values beyond 16777216 in 1 of .*position_embedding"):
        bitbrush.load(artifact, runtime="reference")


@pytest.mark.parametrize("name", ["pixart", "flux-dev"])
def test_a_layer_that_the_configuration_does_not_make_is_named(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    bitbrush.save(quantized(case, pipeline(case), rounding="nearest"), tmp_path / "a", base_model="someone/tiny")
    key = {"pixart": "caption_channels", "flux-dev": "guidance_embeds"}[name]
    with edited(tmp_path / "a", "transformer/config.json") as config:
        config[key] = None
    with pytest.raises(ArtifactError, match=r"does not hold what .*(caption_projection|guidance_embedder)"):
        verify(tmp_path / "a")
