"""Artifacts changed at random: each is verified and loads, or is refused by an ArtifactError, within ten seconds."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from benchmarks.reliability import documents
from benchmarks.reliability.trial import FINE, REFUSED, Trials, rehash

CASES = 150
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
SETTINGS = settings(max_examples=CASES, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="session")
def trials(saved: Path) -> Trials:
    return Trials(saved)


def accepted(trials: Trials, tamper: Callable[[Path], None]) -> str:
    outcome, message = trials.outcome(tamper)
    assert outcome in FINE, f"{outcome}: {message}"
    return outcome


@pytest.mark.slow
@SETTINGS
@given(name=st.sampled_from([name for name in documents.DOCUMENTS if name.endswith(".json")]), data=st.data())
def test_documents(trials: Trials, name: str, data: st.DataObject) -> None:
    document = json.loads((trials.original / name).read_text(encoding="utf-8"))
    path = data.draw(st.sampled_from(documents.places(document)))
    parent = documents.parent_of(document, path)
    if data.draw(st.booleans()):
        parent[path[-1]] = data.draw(VALUES)
    else:
        del parent[path[-1]]

    def tamper(folder: Path) -> None:
        (folder / name).write_text(json.dumps(document), encoding="utf-8")
        rehash(folder) if name != "manifest.json" else None

    accepted(trials, tamper)


@pytest.mark.slow
@SETTINGS
@given(number=st.integers(0, 10**9))
def test_mutations(trials: Trials, number: int) -> None:
    accepted(trials, documents.case(number, 1)[1])


@pytest.mark.slow
@SETTINGS
@given(data=st.data())
def test_tensors(trials: Trials, data: st.DataObject) -> None:
    """Bits of any tensor, under new hashes: what is not finite, not positive or out of range is refused."""
    name = data.draw(st.sampled_from(["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]))
    tensors = load_file(trials.original / name)
    key = data.draw(st.sampled_from(sorted(key for key, tensor in tensors.items() if tensor.numel())))
    place = data.draw(st.integers(0, tensors[key].numel() - 1))
    kind = tensors[key].dtype
    if kind.is_floating_point:
        number: Any = data.draw(st.floats(width=16 if kind in (torch.float16, torch.bfloat16) else 32))
    else:
        number = data.draw(st.integers(torch.iinfo(kind).min, torch.iinfo(kind).max))
    tensors[key].view(-1)[place] = number

    def tamper(folder: Path) -> None:
        save_file(tensors, folder / name, metadata={"format": "pt"})
        rehash(folder)

    outcome = accepted(trials, tamper)
    if kind.is_floating_point and not torch.tensor(number).isfinite():
        assert outcome == REFUSED


@pytest.mark.slow
@SETTINGS
@given(seed=st.integers(0, 10**9))
def test_bytes_of_a_tensor_file(trials: Trials, seed: int) -> None:
    def tamper(folder: Path) -> None:
        draw = random.Random(seed)
        path = folder / "unet" / "diffusion_pytorch_model.safetensors"
        content = bytearray(path.read_bytes())
        for _ in range(draw.choice([1, 4])):
            content[draw.randrange(draw.choice([16, 4000, len(content)]))] = draw.randrange(256)
        path.write_bytes(content[: draw.choice([len(content), draw.randrange(len(content))])])
        rehash(folder)

    accepted(trials, tamper)


def test_a_few_mutations(trials: Trials) -> None:
    """In every run of the tests: the first of the recorded cases."""
    for number in range(12):
        accepted(trials, documents.case(number, documents.SEED)[1])
