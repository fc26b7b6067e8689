"""Metrics of preference and perception: refused with the remedy, and called as their packages want, on stand-ins."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bitbrush.bench.metrics.clip_score import clip_score
from bitbrush.bench.metrics.registry import ImageMetric, PairedMetric, PromptMetric
from bitbrush.bench.networks.clip import load_clip
from bitbrush.bench.networks.preference import named
from bitbrush.bench.networks.preference.named import load_named

IMAGES = np.random.default_rng(0).integers(0, 256, size=(3, 32, 32, 3), dtype=np.uint8)
PROMPTS = ["a red apple", "a dog", "a fox"]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "ImageReward.pt").write_bytes(b"weights")
    return tmp_path


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    module = ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(named, "find_spec", lambda _: True)


def test_pickscore_is_the_cosine_times_the_learned_scale() -> None:
    metric = load_named("pickscore=emoji-clip")
    assert isinstance(metric, PromptMetric)
    clip = load_clip("emoji-clip", torch.device("cpu"))
    cosines = clip_score(clip.features(IMAGES), clip.text_features(PROMPTS)) / 100
    found = metric.of_prompts(IMAGES, PROMPTS)
    expected = float(clip.model.logit_scale.detach().exp()) * cosines
    assert found[cosines > 0] == pytest.approx(expected[cosines > 0])
    assert (metric.name, metric.version) == ("PickScore (emoji-clip)", clip.digest)


def test_imagereward_is_called_image_by_image(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    class Model:
        def score(self, prompt: str, image: Image.Image) -> float:
            return len(prompt) + np.asarray(image).mean() / 1000

    def load(file: str, *, device: str, med_config: str) -> Model:
        assert (file, device, med_config) == (str(weights / "ImageReward.pt"), "cpu", str(weights / "med_config.json"))
        return Model()

    stand_in(monkeypatch, "ImageReward", load=load)
    metric = load_named(f"imagereward={weights}")
    assert isinstance(metric, PromptMetric)
    assert metric.of_prompts(IMAGES, PROMPTS) == pytest.approx(
        [len(prompt) + image.mean() / 1000 for prompt, image in zip(PROMPTS, IMAGES, strict=True)]
    )


def test_hpsv2_gets_the_checkpoint(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    def score(image: Image.Image, prompt: str, cp: str) -> list[float]:
        assert Path(cp).read_bytes() == b"weights"
        return [len(prompt) / image.width]

    stand_in(monkeypatch, "hpsv2")
    stand_in(monkeypatch, "hpsv2.img_score", score=score)
    metric = load_named(f"hpsv2={weights / 'ImageReward.pt'}")
    assert isinstance(metric, PromptMetric)
    assert metric.of_prompts(IMAGES, PROMPTS).tolist() == [len(prompt) / 32 for prompt in PROMPTS]


def test_dreamsim_is_a_distance_of_pairs(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    def preprocess(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image, dtype=np.float32))

    def dreamsim(*, pretrained: bool, device: str, cache_dir: str) -> Any:
        assert (pretrained, device, cache_dir) == (True, "cpu", str(weights))
        return lambda a, b: (a - b).abs().mean(), preprocess

    stand_in(monkeypatch, "dreamsim", dreamsim=dreamsim)
    metric = load_named(f"dreamsim={weights}")
    assert isinstance(metric, PairedMetric)
    assert not metric.higher_is_better
    assert metric.values(IMAGES, IMAGES).tolist() == [0, 0, 0]
    assert (metric.values(IMAGES, IMAGES[::-1])[[0, 2]] > 0).all()
    (weights / "more.pth").write_bytes(b"other")
    assert load_named(f"dreamsim={weights}").version != metric.version  # stored values are not taken for others


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pickscor=x", r"expected NAME=WEIGHTS with a name of pickscore, .*; did you mean pickscore=WEIGHTS\?"),
        ("pickscore", "expected NAME=WEIGHTS"),
        ("hpsv2=", "expected NAME=WEIGHTS"),
        ("pickscore=nowhere", "CLIP 'nowhere' cannot be used"),
    ],
)
def test_what_cannot_be_loaded_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_named(text)


@pytest.mark.parametrize(("name", "package"), [("imagereward", "image-reward"), ("hpsv2", "hpsv2")])
def test_a_missing_package_or_missing_weights_name_the_remedy(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setattr(named, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=f"pip install {package}"):
        load_named(f"{name}=weights")
    monkeypatch.setattr(named, "find_spec", lambda _: True)
    with pytest.raises(ValueError, match="there are no weights at 'nowhere'"):
        load_named(f"{name}=nowhere")


def test_a_metric_of_images_alone_ignores_prompts() -> None:
    def light(images: np.ndarray) -> Sequence[float]:
        return images.mean(axis=(1, 2, 3)).tolist()

    assert ImageMetric("light", light).of_prompts(IMAGES, PROMPTS).tolist() == IMAGES.mean(axis=(1, 2, 3)).tolist()
