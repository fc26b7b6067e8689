"""The CLIP that judges: transformers' own embeddings, one picture at a time or many, and what is no CLIP."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitbrush.bench.metrics.clip_score import clip_score
from bitbrush.bench.networks.clip import Clip, load_clip
from bitbrush.zoo import model_path

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("emoji-clip", CPU)


def test_embeddings_are_transformers_own(clip: Clip) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    texts = ["a red apple", "small television, green background, at the bottom, 3d render", "a dog"]
    tokens = clip.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        output = clip.model(**tokens, pixel_values=pixels)
    own = (output.logits_per_image.diagonal() / clip.model.logit_scale.exp()).detach()
    scores = clip_score(clip.features(images), clip.text_features(texts))
    np.testing.assert_allclose(scores, 100 * own.clamp(min=0).numpy(), rtol=1e-3, atol=1e-3)


def test_a_pictures_features_do_not_depend_on_the_others(clip: Clip) -> None:
    images = np.random.default_rng(1).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    np.testing.assert_allclose(clip.features(images)[3:4], clip.features(images[3:4]), atol=1e-5)


def test_other_sizes_are_resized_and_long_prompts_cut(clip: Clip) -> None:
    image = np.full((1, 96, 128, 3), 200, dtype=np.uint8)
    assert clip.features(image).shape == clip.text_features(["apple " * 100]).shape == (1, 128)


def test_name_and_digest_tell_the_weights(clip: Clip, tmp_path: Path) -> None:
    own = model_path("emoji-clip")
    assert own is not None
    shutil.copytree(own, tmp_path / "mine")
    mine = load_clip(tmp_path / "mine", CPU)
    assert (mine.name, mine.digest) == ("mine", clip.digest)
    assert clip.distance_name == "Fréchet distance (emoji-clip)"
    config = json.loads((tmp_path / "mine" / "preprocessor_config.json").read_text())
    (tmp_path / "mine" / "preprocessor_config.json").write_text(json.dumps({**config, "image_mean": [0.4, 0.5, 0.5]}))
    assert load_clip(tmp_path / "mine", CPU).digest != clip.digest


def test_what_is_no_clip_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="CLIP 'nowhere/clip' cannot be used"):
        load_clip("nowhere/clip", CPU)
    own = model_path("emoji-clip")
    assert own is not None
    shutil.copytree(own, tmp_path / "vision")
    path = tmp_path / "vision" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config["vision_config"], "model_type": "clip_vision_model"}))
    with pytest.raises(ValueError, match="is a clip_vision_model, and a CLIPModel with a vision and a text tower"):
        load_clip(tmp_path / "vision", CPU)
    (tmp_path / "cut").mkdir()
    for file in own.iterdir():
        content = file.read_bytes()
        (tmp_path / "cut" / file.name).write_bytes(content[:5000] if file.suffix == ".safetensors" else content)
    with pytest.raises(ValueError, match="cannot be used"):
        load_clip(tmp_path / "cut", CPU)


def test_a_clip_without_its_text_tower_is_refused(tmp_path: Path) -> None:
    own = model_path("emoji-clip")
    assert own is not None
    shutil.copytree(own, tmp_path / "blind")
    weights = load_file(own / "model.safetensors")
    kept = {key: tensor for key, tensor in weights.items() if not key.startswith("text_model.")}
    assert 0 < len(kept) < len(weights)
    save_file(kept, tmp_path / "blind" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks \d+ of its weights, e\.g\. text_model.*is a tower left out"):
        load_clip(tmp_path / "blind", CPU)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensor: tensor[:-1].clone(), r"text_projection\.weight has shape .*, expected is"),
        (
            lambda tensor: tensor * float("nan"),
            r"holds NaN or infinity in 1 of its \d+ tensors .text_projection\.weight",
        ),
    ],
)
def test_a_damaged_tensor_is_named(tmp_path: Path, damage: Callable[[Tensor], Tensor], message: str) -> None:
    own = model_path("emoji-clip")
    assert own is not None
    shutil.copytree(own, tmp_path / "damaged")
    weights = load_file(own / "model.safetensors")
    weights["text_projection.weight"] = damage(weights["text_projection.weight"])
    save_file(weights, tmp_path / "damaged" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        load_clip(tmp_path / "damaged", CPU)
