"""A safetensors file read tensor by tensor holds what the package that wrote it reads."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitbrush.artifact.tensor_file import TensorFile


def test_every_tensor_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    kinds = (torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.uint8, torch.int64)
    save_file(
        {str(kind): torch.arange(6).view(2, 3).to(kind) for kind in kinds} | {"none": torch.empty(0, 4)},
        path,
        metadata={"format": "pt"},
    )
    found, expected = TensorFile(path), load_file(path)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert found.get("missing") is None


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    save_file({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"cut.safetensors ends before its tensors do"):
        TensorFile(path)["a"]
    path.write_bytes(b"\x05\x00\x00\x00\x00\x00\x00\x00hello")
    with pytest.raises(ValueError, match="is no safetensors file"):
        TensorFile(path)
