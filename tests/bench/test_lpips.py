"""LPIPS against the same network written with torch.nn, and what it says of files that hold something else."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from bitbrush.bench.networks.lpips import load_lpips

ALEX = nn.Sequential(
    nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
    nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
    nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU(),
    nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU(),
    nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(),
)  # fmt: skip
ALEX_SLICES = ((0, 2), (2, 5), (5, 8), (8, 10), (10, 12))


def vgg() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


VGG_SLICES = ((0, 4), (4, 9), (9, 16), (16, 23), (23, 30))


def weights_of(network: nn.Sequential, slices: tuple[tuple[int, int], ...]) -> dict[str, Tensor]:
    """As the lpips package names them."""
    tensors = {}
    for level, (start, end) in enumerate(slices):
        for index in range(start, end):
            for name, tensor in network[index].state_dict().items():
                tensors[f"net.slice{level + 1}.{index}.{name}"] = tensor
                channels = len(tensor)
        tensors[f"lin{level}.model.1.weight"] = torch.rand(
            1, channels, 1, 1, generator=torch.Generator().manual_seed(level)
        )
    return tensors


def expected(
    network: nn.Sequential,
    slices: tuple[tuple[int, int], ...],
    weights: dict[str, Tensor],
    pair: list[NDArray[np.uint8]],
) -> NDArray[np.float64]:
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x, y = (((torch.from_numpy(i).float() / 127.5 - 1 - shift) / scale).permute(0, 3, 1, 2) for i in pair)
    total = torch.zeros(len(x))
    for level, (start, end) in enumerate(slices):
        x, y = (network[start:end](part) for part in (x, y))
        difference = nn.functional.normalize(x, dim=1) - nn.functional.normalize(y, dim=1)
        total += (difference**2 * weights[f"lin{level}.model.1.weight"]).sum(1).mean((1, 2))
    return total.double().numpy()


@pytest.mark.parametrize("name", ["alex", "vgg"])
@torch.no_grad()
def test_agrees_with_the_network_written_with_torch_nn(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, slices = (ALEX, ALEX_SLICES) if name == "alex" else (vgg(), VGG_SLICES)
    weights = weights_of(network, slices)
    save_file(weights, tmp_path / "lpips.safetensors")
    lpips = load_lpips(tmp_path / "lpips.safetensors")
    rng = np.random.default_rng(0)
    pair = [rng.integers(0, 256, (2, 64, 48, 3), dtype=np.uint8) for _ in range(2)]
    assert lpips.name == f"LPIPS ({name})"
    np.testing.assert_allclose(lpips.distances(*pair), expected(network, slices, weights, pair), rtol=1e-4)
    assert (lpips.distances(pair[0], pair[0]) == 0).all()
    with pytest.raises(ValueError, match="takes images from"):
        lpips.distances(pair[0][:, :8], pair[1][:, :8])


def test_files_that_hold_something_else_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.safetensors' cannot be read"):
        load_lpips(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors here")
    with pytest.raises(ValueError, match="cannot be read"):
        load_lpips(tmp_path / "text.safetensors")
    weights = weights_of(ALEX, ALEX_SLICES)
    del weights["net.slice4.8.bias"]
    save_file(weights, tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match=r"lack net\.slice4\.8\.bias for AlexNet"):
        load_lpips(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("name", ["net.slice2.3.weight", "net.slice4.8.bias", "lin2.model.1.weight"])
def test_tensors_of_another_shape_or_without_numbers_are_named(tmp_path: Path, name: str) -> None:
    """A smaller kernel would compute something all the same."""
    weights = weights_of(ALEX, ALEX_SLICES)
    shape = tuple(weights[name].shape)
    for damaged, message in (
        (weights[name][..., :-1].contiguous(), rf"lack {name} of shape {re.escape(str(shape))} for AlexNet"),
        (torch.full(shape, torch.nan), rf"hold NaN or infinity in {name}"),
    ):
        save_file({**weights, name: damaged}, tmp_path / "l.safetensors")
        with pytest.raises(ValueError, match=message):
            load_lpips(tmp_path / "l.safetensors")
