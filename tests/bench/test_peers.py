"""Peers: found by name, refused with the remedy; sizes of networks whose tensors are of other packages' classes."""

from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from bitbrush.bench.experiments.foreign import layer_kinds
from bitbrush.bench.experiments.storage import memory_bytes, stored_bytes
from bitbrush.bench.peers import registry
from bitbrush.bench.peers.registry import BUILT_IN, installed_peer, names_peer, peers
from tests.bench.gguf_file import write_gguf

FAKES = "tests.bench.fake_peers"


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    places = {"fake": "FAKE", "absent": "ABSENT", "files": "OF_FILES"}
    points = [EntryPoint(name, f"{FAKES}:{place}", registry.GROUP) for name, place in places.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == registry.GROUP else [])


@pytest.mark.usefixtures("fakes")
def test_a_package_adds_a_peer_by_its_entry_point() -> None:
    assert set(peers()) == {*BUILT_IN, "fake", "absent", "files"}
    assert names_peer("fake:bf16")
    assert not names_peer("fake")
    assert not names_peer("other:bf16")
    assert installed_peer("fake", "bf16").schemes["bf16"] == 16


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("fake:bf61", r"fake has no scheme 'bf61'; known are fake:bf16, .*; did you mean 'bf16'\?"),
        ("fake:", "fake has no scheme ''; known are"),
        ("absent:int8", "absent:int8 needs a package that is missing: pip install absent-quantizer"),
        ("files:nowhere.gguf", "needs a file, and there is none at 'nowhere.gguf'"),
        ("files:", "needs a file"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_remedy(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        installed_peer(*source.split(":", 1))


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_peer_names_what_pip_installs(name: str) -> None:
    peer = peers()[name]
    assert set(peer.schemes.values()) <= {8, 16, 32}
    scheme = next(iter(peer.schemes), __file__)
    if find_spec(peer.module.partition(".")[0]) is None:
        with pytest.raises(ValueError, match=f"pip install {peer.package}"):
            installed_peer(name, scheme)
    else:
        assert installed_peer(name, scheme) is peer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", ["torchao:int8dq", "torchao:int8wo", "quanto:int8", "bnb:nf4"])
def test_an_installed_peer_makes_a_denoiser_smaller(tiny_pipe: StableDiffusionPipeline, source: str) -> None:
    name, scheme = source.split(":")
    pytest.importorskip(peers()[name].module)
    before = memory_bytes(tiny_pipe.unet)
    quantized = installed_peer(name, scheme).quantize(tiny_pipe.unet, scheme)
    assert memory_bytes(quantized) < before


class Holder:
    """Keeps a tensor as runtimes do: in an object without being a module."""

    __slots__ = ("packed",)

    def __init__(self, packed: torch.Tensor) -> None:
        self.packed = packed


def linear() -> nn.Linear:
    layer = nn.Linear(16, 8, bias=False)
    layer.weight.requires_grad_(False)
    return layer


def test_memory_counts_parameters_buffers_and_what_objects_hold_once() -> None:
    network: Any = nn.Sequential(linear(), linear())
    assert memory_bytes(network) == 2 * 8 * 16 * 4
    network[1].weight = network[0].weight
    network.view = network[0].weight.detach()[:4]
    assert memory_bytes(network) == 8 * 16 * 4
    network[0].register_buffer("scale", torch.zeros(8, dtype=torch.float16), persistent=False)
    network[1].kernel = Holder(torch.zeros(100, dtype=torch.int8))
    network[1].tables = {"steps": [torch.zeros(3, dtype=torch.int32)]}
    network[1].unused = torch.zeros(1000, device="meta")
    assert memory_bytes(network) == 8 * 16 * 4 + 16 + 100 + 12
    assert stored_bytes(linear().to(torch.bfloat16)) == 8 * 16 * 2


def test_a_tensor_subclass_counts_what_is_inside() -> None:
    layer = linear()
    parts = torch.zeros(8, 16, dtype=torch.int8), torch.zeros(8, 16, dtype=torch.int8)
    layer.weight = nn.Parameter(TwoTensor(*parts), requires_grad=False)
    assert layer.weight.nbytes == 8 * 16
    assert memory_bytes(layer) == stored_bytes(layer) == 2 * 8 * 16
    assert layer_kinds(nn.Sequential(layer, linear(), nn.Conv2d(1, 1, 1))) == {
        "Conv2d, float32": 1,
        "Linear, TwoTensor": 1,
        "Linear, float32": 1,
    }


def test_bytes_on_disk_take_the_narrowest_lossless_type() -> None:
    layer = linear()
    layer.weight.copy_(torch.randn(8, 16).half().float())
    assert stored_bytes(layer) == 8 * 16 * 2
    layer.weight[0, 0] = 1 / 3
    assert stored_bytes(layer) == 8 * 16 * 4


@pytest.mark.filterwarnings("ignore")
def test_a_gguf_file_is_read_in_the_original_layout(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    file = str(tmp_path / "tiny-q8.gguf")
    write_gguf(tiny_pipe, file)
    quantized = installed_peer("gguf", file).quantize(tiny_pipe.unet, file)
    assert layer_kinds(quantized)["GGUFLinear, GGUFParameter"] > 0
    assert memory_bytes(quantized) < memory_bytes(tiny_pipe.unet)
    inputs = torch.randn(1, 4, 8, 8), torch.tensor(1), torch.randn(1, 4, tiny_pipe.unet.config.cross_attention_dim)
    with torch.no_grad():
        first, second = tiny_pipe.unet(*inputs).sample, quantized(*inputs).sample
    assert 0 < (first - second).abs().max() < 0.1 * first.abs().max()
