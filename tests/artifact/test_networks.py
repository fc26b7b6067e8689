"""Artifacts with quantized text encoders and VAE: what is stored is what every runtime computes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import bitbrush
from bitbrush import Quantization
from bitbrush.artifact.documents import ArtifactError
from bitbrush.artifact.folder import file_digests
from bitbrush.artifact.store import verify
from bitbrush.network.packed_weight import PackedEmbedding
from bitbrush.runtime.integer_weight import IntegerParameters
from bitbrush.runtime.lowered import lowered_of
from tests.artifact.pipelines import CASES, PROMPTS, pipeline

ALL = "denoiser,text_encoders,vae"
KEYS = {"steps": 2, "num_prompts": 2, "method": "dynamic", "text_encoder_weights": 4}


def quantized(name: str, networks: str = ALL) -> Quantization:
    case = CASES[name]
    return bitbrush.quantize(pipeline(case), PROMPTS, {**KEYS, **case.keys, "networks": networks}, inputs=case.inputs)


def image(pipe: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return torch.from_numpy(pipe("a red cat", num_inference_steps=2, generator=generator, output_type="np").images)


@pytest.fixture(scope="module")
def made() -> Quantization:
    return quantized("sd1")


@pytest.fixture(scope="module")
def stored(made: Quantization, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bitbrush.save(made, tmp_path_factory.mktemp("networks") / "artifact", base_model="someone/tiny")


@pytest.fixture
def folder(stored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored, tmp_path / "copy"))


def test_the_reference_computes_what_was_quantized(made: Quantization, stored: Path) -> None:
    assert torch.equal(image(bitbrush.load(stored, runtime="reference")), image(made.pipeline()))


@torch.no_grad()
def test_onednn_computes_the_same_embeddings_and_images(stored: Path) -> None:
    reference = bitbrush.load(stored, runtime="reference")
    pipe = bitbrush.load(stored, runtime="onednn", dtype="float32")
    tokens, latents = torch.arange(2, 12).view(2, 5), torch.randn(1, 4, 8, 8, generator=torch.manual_seed(0))
    integers = [module for module in pipe.text_encoder.modules() if isinstance(module, IntegerParameters)]
    assert len(integers) == 12
    assert not any(isinstance(module, nn.Linear) for module in pipe.text_encoder.modules())
    for y, expected in (
        (pipe.text_encoder(tokens)[0], reference.text_encoder(tokens)[0]),
        (pipe.vae.decode(latents).sample, reference.vae.decode(latents).sample),
    ):
        assert y.dtype == torch.float32
        assert (y - expected).norm() < 0.02 * expected.norm()
    for network in (pipe.text_encoder, pipe.vae.decoder):
        lowered = lowered_of(network)
        assert lowered is not None
        assert all(one.fallback is None for one in lowered.executions)
    assert (image(bitbrush.load(stored)) - image(reference)).square().mean().sqrt() < 0.1


@pytest.mark.parametrize("name", ["sdxl-turbo", "pixart", "sd3", "flux-schnell"])
def test_other_pipelines_load(name: str, tmp_path: Path) -> None:
    made = quantized(name)
    root = bitbrush.save(made, tmp_path / "artifact", base_model="someone/tiny")
    pipe = bitbrush.load(root, runtime="reference")
    tokens = torch.arange(2, 12).view(2, 5)
    with torch.no_grad():
        for key in made.networks.keys() - {"vae"}:
            given, expected = getattr(pipe, key)(tokens)[0], getattr(made.pipeline(), key)(tokens)[0]
            assert torch.equal(given, expected)
            onednn = getattr(bitbrush.load(root, runtime="onednn"), key)(tokens)[0]
            assert (onednn - expected).norm() < 0.05 * expected.norm()


def test_the_manifest_and_the_files_tell_of_them(made: Quantization, stored: Path) -> None:
    manifest = verify(stored)
    assert manifest["networks"].keys() == {"text_encoder", "vae"}
    text = manifest["networks"]["text_encoder"]
    assert text["bytes"] == (stored / "text_encoder/model.safetensors").stat().st_size
    assert {layer["weight_bits"] for layer in text["layers"]} == {4}
    assert [table["name"] for table in text["tables"]] == ["embeddings.token_embedding"]
    tensors = load_file(stored / "text_encoder/model.safetensors")
    layer = made.networks["text_encoder"].layers[0]
    assert tensors[f"{layer.name}.weight"].nbytes == layer.weight.w_q.numel() // 2
    assert manifest["recipe"]["networks"] == ALL
    assert "--networks denoiser,text_encoders,vae" in (stored / "README.md").read_text()


def test_an_artifact_of_the_denoiser_alone_has_no_trace_of_them(tmp_path: Path) -> None:
    root = bitbrush.save(quantized("sd1", "denoiser"), tmp_path / "artifact", base_model="someone/tiny")
    manifest = json.loads((root / "manifest.json").read_text())
    assert "networks" not in manifest
    assert "networks" not in manifest["recipe"]


def test_it_is_saved_again_from_a_folder_and_a_file(made: Quantization, stored: Path, tmp_path: Path) -> None:
    expected = image(bitbrush.load(stored, runtime="reference"))
    DiffusionPipeline.from_pretrained(stored).save_pretrained(tmp_path / "again")
    bitbrush.save(made, tmp_path / "one.safetensors", base_model="someone/tiny")
    bitbrush.load(tmp_path / "one.safetensors").save_pretrained(tmp_path / "third")
    for place in ("again", "one.safetensors", "third"):
        assert torch.equal(image(bitbrush.load(tmp_path / place, runtime="reference")), expected)


def test_a_replaced_network_is_not_in_the_way(stored: Path, tmp_path: Path) -> None:
    own = pipeline(CASES["sd1"]).text_encoder
    pipe = DiffusionPipeline.from_pretrained(stored, text_encoder=own)
    assert pipe.text_encoder is own
    pipe.save_pretrained(tmp_path / "other")
    assert verify(tmp_path / "other")["networks"].keys() == {"vae"}


def test_what_does_not_apply_is_refused_with_the_remedy(stored: Path, tmp_path: Path) -> None:
    pipe = bitbrush.load(stored)
    with pytest.raises(ValueError, match="takes no adapters: fuse the LoRA before"):
        pipe.text_encoder.add_adapter(None)
    with pytest.raises(ValueError, match="saved with its pipeline"):
        pipe.vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match=r"quantized networks beside its denoiser \(text_encoder, vae\)"):
        bitbrush.recalibrate(stored, {"steps": 3}, PROMPTS)
    with pytest.raises(ValueError, match="is quantized already"):
        bitbrush.quantize(pipe, PROMPTS, {**KEYS})


def test_casts_and_copies_leave_the_integers(stored: Path) -> None:
    pipe = bitbrush.load(stored, runtime="reference")
    expected = image(pipe)
    encoder = pipe.text_encoder.half().to(torch.bfloat16)
    assert isinstance(encoder.get_input_embeddings(), PackedEmbedding)
    assert encoder.dtype == torch.float32
    pipe.vae.decoder.half()
    assert torch.equal(image(pipe), expected)


def altered(folder: Path, name: str) -> None:
    """Lists the altered file's hash, as somebody who forges an artifact would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = file_digests(folder)[name]
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("part", "file", "key", "message"),
    [
        (
            "text_encoder",
            "model.safetensors",
            "embeddings.token_embedding.weight_scale",
            "embedding.weight_scale",
        ),
        ("text_encoder", "model.safetensors", "final_layer_norm.weight", "final_layer_norm"),
        ("text_encoder", "model.safetensors", "embeddings.token_embedding.weight", "token_embedding.weight of shape"),
        ("vae", "diffusion_pytorch_model.safetensors", "decoder.conv_in.weight", "decoder.conv_in.weight of shape"),
        ("vae", "diffusion_pytorch_model.safetensors", "decoder.conv_in.activation_scale", "conv_in.activation_scale"),
    ],
)
def test_a_missing_tensor_is_named(folder: Path, part: str, file: str, key: str, message: str) -> None:
    tensors = load_file(folder / part / file)
    del tensors[key]
    save_file(tensors, folder / part / file)
    altered(folder, f"{part}/{file}")
    with pytest.raises(ArtifactError, match=message):
        verify(folder)


def test_entries_that_disagree_are_named(folder: Path) -> None:
    config = json.loads((folder / "text_encoder/config.json").read_text())
    config["quantization_config"]["embeddings"] = []
    (folder / "text_encoder/config.json").write_text(json.dumps(config))
    altered(folder, "text_encoder/config.json")
    with pytest.raises(ArtifactError, match=r"does not hold what manifest\.json lists: embeddings"):
        verify(folder)
    del config["quantization_config"]
    (folder / "text_encoder/config.json").write_text(json.dumps(config))
    altered(folder, "text_encoder/config.json")
    with pytest.raises(ArtifactError, match=r"text_encoder/config\.json"):
        bitbrush.load(folder)
