"""Networks beside the denoiser take no more room than in the checkpoint, and keep every number."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel

import bitbrush
from bitbrush.artifact.narrow import narrow_files
from bitbrush.network.lazy_weights import state_readers
from bitbrush.network.narrow import lossless_type, narrow_bytes
from bitbrush.network.narrow_weight import NarrowWeight
from bitbrush.quantization.estimate import estimate
from bitbrush.quantization.quantize import prepare
from bitbrush.runtime.interface import RuntimeUnavailable
from bitbrush.session.offload import Offload
from bitbrush.sources.models import load_source
from tests.artifact.pipelines import PROMPTS

RECIPE = {"rounding": "nearest", "steps": 2, "num_prompts": 2}


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0.5, -3.0, 1e-7], torch.float16),
        ([0.5, 1e30], torch.bfloat16),
        ([0.5, 1.001], torch.float32),
        ([0.5, float("nan")], torch.float32),
        ([1e30, 1.0009765625], torch.float32),  # either type has one of them
        ([], torch.float16),
    ],
)
def test_the_narrowest_type_that_has_every_number(values: list[float], dtype: torch.dtype) -> None:
    halves = torch.tensor(values).half().float() if dtype == torch.float16 else torch.tensor(values)
    given = halves.bfloat16().float() if dtype == torch.bfloat16 else halves
    assert lossless_type([given, torch.arange(3)]) == dtype


def files(folder: Path, *parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parts in a file each, with the index that lists them; and all of them together."""
    folder.mkdir()
    everything: dict[str, Tensor] = {}
    for number, part in enumerate(parts):
        save_file(part, folder / f"model-{number}.safetensors", metadata={"format": "pt"})
        everything |= part
    index = {"metadata": {"total_size": sum(x.nbytes for x in everything.values())}, "weight_map": {"a": "model-0"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return everything


def read(folder: Path) -> dict[str, Tensor]:
    return {name: x for path in sorted(folder.glob("*.safetensors")) for name, x in load_file(path).items()}


def test_all_files_of_a_network_have_one_type(tmp_path: Path) -> None:
    large, small = torch.tensor([1e30]).bfloat16().float(), torch.tensor([0.5])
    given = files(tmp_path / "network", {"a": large, "ids": torch.arange(5)}, {"b": small})
    narrow_files(tmp_path / "network")
    made = read(tmp_path / "network")
    assert {name: x.dtype for name, x in made.items()} == {
        "a": torch.bfloat16,
        "b": torch.bfloat16,
        "ids": torch.int64,
    }
    assert all(torch.equal(made[name].to(x.dtype), x) for name, x in given.items())
    index = json.loads((tmp_path / "network" / "model.safetensors.index.json").read_text())
    assert index == {"metadata": {"total_size": 2 + 40 + 2}, "weight_map": {"a": "model-0"}}
    assert {path.suffix for path in (tmp_path / "network").iterdir()} == {".safetensors", ".json"}


def test_float32_is_left_alone(tmp_path: Path) -> None:
    files(tmp_path / "network", {"a": torch.tensor([1.001])}, {"b": torch.tensor([0.5])})
    before = {path: path.read_bytes() for path in (tmp_path / "network").iterdir()}
    narrow_files(tmp_path / "network")
    assert {path: path.read_bytes() for path in (tmp_path / "network").iterdir()} == before


def test_what_will_be_left_is_known_before() -> None:
    network = nn.Linear(3, 5).half().float()
    network.register_buffer("ids", torch.arange(7))
    assert narrow_bytes(network) == 2 * 20 + 8 * 7
    with torch.no_grad():
        network.bias.fill_(1.001)
    assert narrow_bytes(network) == 4 * 20 + 8 * 7


def test_with_little_memory_other_networks_stay_narrow(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    recipe = bitbrush.METHODS["pcr"].recipe(RECIPE)
    made = bitbrush.quantize(tiny_pipe.to(torch.float16), recipe, PROMPTS)
    folder = bitbrush.save(made, tmp_path / "artifact", base_model="tiny")
    try:
        wide, narrow = (bitbrush.load(folder, runtime="onednn", memory=memory) for memory in ("expanded", "low"))
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
    for name in ("text_encoder", "vae"):
        layers = [layer for layer in getattr(narrow, name).modules() if isinstance(layer, NarrowWeight)]
        assert layers
        assert not any(isinstance(layer, NarrowWeight) for layer in getattr(wide, name).modules())
        assert {layer.weight.dtype for layer in layers} == {torch.float32}
        assert {parameter.dtype for layer in layers for parameter in layer.parameters()} >= {torch.float16}
    embeddings = [pipe.encode_prompt(["a red cat"], "cpu", 1, False)[0] for pipe in (wide, narrow)]
    assert torch.equal(*embeddings)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(*(pipe.vae.decode(latents).sample for pipe in (wide, narrow)))
    assert narrow("a red cat", num_inference_steps=2).images


def test_an_artifact_of_a_half_precision_checkpoint(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    """Its text encoder and VAE are as large as there, and load as the same float32 networks."""
    tiny_pipe.to(torch.float16).save_pretrained(tmp_path / "model")
    source = load_source(tmp_path / "model", offload=Offload(tmp_path))
    recipe = bitbrush.METHODS["pcr"].recipe(RECIPE)
    state = prepare(source, recipe, PROMPTS)
    folder = bitbrush.save(bitbrush.quantize(source, recipe, PROMPTS), tmp_path / "artifact", base_model="tiny")
    loaded = bitbrush.load(folder, runtime="reference")
    for name in ("text_encoder", "vae"):
        (ours,), (theirs,) = ((tmp_path / root / name).glob("*.safetensors") for root in ("artifact", "model"))
        assert ours.stat().st_size <= theirs.stat().st_size
        network: nn.Module = getattr(loaded, name)
        wanted = state_readers(getattr(source, name))
        assert {x.dtype for x in network.parameters()} == {torch.float32}
        assert all(torch.equal(x, wanted[key]()) for key, x in network.state_dict().items())
    for kind, name in ((CLIPTextModel, "text_encoder"), (AutoencoderKL, "vae")):  # nor does anybody else notice
        assert {x.dtype for x in kind.from_pretrained(folder / name).parameters()} == {torch.float32}
    stored = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    planned = estimate(state).artifact
    assert 0.9 * stored < planned < 1.15 * stored
