"""Full-precision pipelines by name, directory, or not at all."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from bitbrush import load_full_precision
from bitbrush.artifact.models import UnknownModelError, find_model


def test_the_bundled_pipeline_is_in_float32() -> None:
    pipe = load_full_precision("emoji-sd")
    assert isinstance(pipe, StableDiffusionPipeline)
    assert {parameter.dtype for parameter in pipe.unet.parameters()} == {torch.float32}


def test_a_directory_is_a_pipeline(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    tiny_pipe.to(torch.bfloat16).save_pretrained(tmp_path / "tiny")
    assert find_model(tmp_path / "tiny") == str(tmp_path / "tiny")
    pipe = load_full_precision(tmp_path / "tiny")
    assert {parameter.dtype for parameter in pipe.unet.parameters()} == {torch.float32}


def test_what_is_no_pipeline_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match="bundled model 'emoji-clip' is no pipeline; emoji-sd is"):
        load_full_precision("emoji-clip")
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(UnknownModelError, match=r"is no diffusers pipeline: it has no model_index\.json"):
            load_full_precision(path)


@pytest.mark.parametrize("name", ["no/such-model", "no such model!", "./nowhere", "a/b/c/d"])
def test_unknown_names_say_where_was_looked(name: str) -> None:
    with pytest.raises(UnknownModelError, match=f"model '{name}' is neither bundled .emoji-sd, emoji-clip., nor a dir"):
        load_full_precision(name)
