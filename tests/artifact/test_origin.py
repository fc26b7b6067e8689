"""Whether a model is the one that an artifact was made of: by its weights' digest, with what differs named."""

from pathlib import Path

import pytest

from bitbrush import Lora, ModelOptions
from bitbrush.artifact.origin import require_origin


def loras(folder: Path, *given: tuple[str, float]) -> tuple[Lora, ...]:
    for name, _ in given:
        (folder / name).write_bytes(name.encode())
    return tuple(Lora(folder / name, scale) for name, scale in given)


def manifest(options: ModelOptions, *, model: str = "someone/model") -> dict[str, object]:
    return {"base_model": model, "base_model_digest": "a" * 64, "base_model_options": options.facts()}


def test_equal_weights_need_no_equal_names() -> None:
    recorded = manifest(ModelOptions(revision="main"), model="somewhere/else")
    assert require_origin("dir", recorded, "someone/model", ModelOptions(), "a" * 64) is None


@pytest.mark.parametrize(
    ("fused", "given", "message"),
    [
        ([("x", 0.8)], [], r"LoRA x@0.8 \(sha256 \w{12}\) was fused into it and is not given: add --lora FILE@0.8"),
        ([("x", 0.8)], [("x", 1.0)], r"LoRA x@0.8 .* is given with scale 1"),
        ([], [("x", 1.0)], r"LoRA x@1 .* is given and was not fused into it"),
        ([("x", 1.0), ("y", 1.0)], [("y", 1.0), ("x", 1.0)], "in another order; they were fused as x, y"),
    ],
)
def test_differing_loras_are_named(
    tmp_path: Path, fused: list[tuple[str, float]], given: list[tuple[str, float]], message: str
) -> None:
    recorded = manifest(ModelOptions(loras=loras(tmp_path, *fused)))
    options = ModelOptions(loras=loras(tmp_path, *given))
    with pytest.raises(ValueError, match=message):
        require_origin("dir", recorded, "someone/model", options, "b" * 64)


def test_a_renamed_lora_is_the_same_and_other_bits_of_it_are_told(tmp_path: Path) -> None:
    recorded = manifest(ModelOptions(loras=loras(tmp_path, ("x", 0.5))))
    renamed = tmp_path / "x.old"
    renamed.write_bytes((tmp_path / "x").read_bytes())
    options = ModelOptions(loras=(Lora(renamed, 0.5),))
    doubt = require_origin("dir", recorded, "someone/model", options, "b" * 64)
    assert doubt is not None
    assert "fused on another machine, or someone/model was changed since" in doubt


@pytest.mark.parametrize(
    ("options", "model", "message"),
    [
        (ModelOptions(variant="fp16"), "someone/model", "variant was not given, now it is fp16"),
        (ModelOptions(), "someone/other", "it was made of someone/model"),
        (ModelOptions(), "someone/model", "someone/model was changed since; compare an artifact with the model"),
    ],
)
def test_other_weights_are_refused(options: ModelOptions, model: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_origin("dir", manifest(ModelOptions()), model, options, "b" * 64)
    older = {key: value for key, value in manifest(ModelOptions()).items() if key != "base_model_digest"}
    with pytest.raises(ValueError, match="digest none: made "):
        require_origin("dir", older, model, options, "b" * 64)
