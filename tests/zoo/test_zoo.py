"""The bundled models load, belong together, and their prompts fit them."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from transformers import AutoTokenizer, CLIPModel

from bitbrush import zoo


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(zoo.model_path("emoji-sd"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def sdxl() -> StableDiffusionXLPipeline:
    pipeline = StableDiffusionXLPipeline.from_pretrained(zoo.model_path("emoji-sdxl"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def clip() -> CLIPModel:
    return CLIPModel.from_pretrained(zoo.model_path("emoji-clip"))


def test_importing_needs_no_torch() -> None:
    # The file alone: what the package's own face imports is not the zoo's business.
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, zoo.__file__], check=False).returncode == 0


def test_model_path() -> None:
    assert (zoo.model_path("emoji-sd") / "model_index.json").is_file()
    assert (zoo.model_path("emoji-clip") / "config.json").is_file()
    assert zoo.model_path("someone/else") is None


def test_attribution_travels_along() -> None:
    notice = (zoo.model_path("emoji-sd").parent / "NOTICE").read_text(encoding="utf-8")
    assert "Copyright (c) Microsoft Corporation" in notice
    assert "MIT License" in notice


def test_pipeline_is_stable_diffusion_in_full_precision(pipeline: StableDiffusionPipeline) -> None:
    assert isinstance(pipeline.scheduler, PNDMScheduler)
    assert isinstance(pipeline.vae, AutoencoderKL)
    assert {p.dtype for p in pipeline.unet.parameters()} == {torch.float32}
    assert pipeline.text_encoder.dtype == torch.float32


def test_pipeline_draws_the_background_it_is_asked_for(pipeline: StableDiffusionPipeline) -> None:
    prompts = ["a lemon on a blue background", "a lemon on a yellow background"]
    generators = [torch.Generator().manual_seed(0) for _ in prompts]
    blue, yellow = pipeline(prompts, num_inference_steps=25, generator=generators, output_type="np").images
    assert blue.shape == (64, 64, 3)
    corners = [np.concatenate([image[:6, :6], image[-6:, -6:]]).mean((0, 1)) for image in (blue, yellow)]
    assert corners[0][2] > corners[0][0] + 0.2
    assert corners[1][0] > corners[1][2] + 0.2


def test_sdxl_is_sdxl_and_small(sdxl: StableDiffusionXLPipeline) -> None:
    assert isinstance(sdxl.scheduler, EulerDiscreteScheduler)
    assert sdxl.config.force_zeros_for_empty_prompt
    assert sdxl.unet.config.addition_embed_type == "text_time"
    files = zoo.model_path("emoji-sdxl").rglob("*.safetensors")
    assert sum(path.stat().st_size for path in files) < 40e6


def test_sdxl_draws_the_background_it_is_asked_for(sdxl: StableDiffusionXLPipeline) -> None:
    prompts = ["a lemon on a blue background", "a lemon on a yellow background"]
    generators = [torch.Generator().manual_seed(0) for _ in prompts]
    blue, yellow = sdxl(prompts, num_inference_steps=15, generator=generators, output_type="np").images
    corners = [np.concatenate([image[:6, :6], image[-6:, -6:]]).mean((0, 1)) for image in (blue, yellow)]
    assert corners[0][2] > corners[0][0] + 0.2
    assert corners[1][0] > corners[1][2] + 0.2


def test_sdxl_obeys_its_micro_conditions(sdxl: StableDiffusionXLPipeline) -> None:
    """Pictures of a small original are blurred: their edges are as high, and less steep."""
    prompts = list(zoo.prompt_set("emoji-sdxl", "coco", "test")[:6])

    def sharpness(**conditions: tuple[int, int]) -> float:
        generators = [torch.Generator().manual_seed(index) for index in range(len(prompts))]
        images = sdxl(prompts, num_inference_steps=15, generator=generators, output_type="np", **conditions).images
        return float(np.square(np.diff(images, axis=2)).mean())

    assert sharpness(original_size=(20, 20)) < 0.9 * sharpness()


def test_both_pipelines_have_the_same_prompts() -> None:
    assert zoo.prompt_sets("emoji-sdxl") == zoo.prompt_sets("emoji-sd")
    assert zoo.prompt_set("emoji-sdxl", "sdp", "test") == zoo.prompt_set("emoji-sd", "sdp", "test")


def test_text_tower_of_clip_is_the_text_encoder(pipeline: StableDiffusionPipeline, clip: CLIPModel) -> None:
    tower, encoder = clip.text_model.state_dict(), pipeline.text_encoder.state_dict()
    assert len(encoder) == len(tower)
    for name, tensor in encoder.items():
        assert torch.equal(tensor, tower[name.removeprefix("text_model.")]), name


def test_both_models_have_the_same_tokenizer(pipeline: StableDiffusionPipeline) -> None:
    other = AutoTokenizer.from_pretrained(zoo.model_path("emoji-clip"))
    assert other.get_vocab() == pipeline.tokenizer.get_vocab()
    prompts = list(zoo.prompt_set("emoji-sd", "coco", "test"))
    assert other(prompts).input_ids == pipeline.tokenizer(prompts).input_ids


@pytest.mark.parametrize(("set_name", "split"), [("coco", "calibration"), ("coco", "test"), ("sdp", "test")])
def test_prompts_fit_the_text_encoder(pipeline: StableDiffusionPipeline, set_name: str, split: str) -> None:
    limit = pipeline.text_encoder.config.max_position_embeddings
    assert limit == pipeline.tokenizer.model_max_length == 32
    ids = pipeline.tokenizer(list(zoo.prompt_set("emoji-sd", set_name, split))).input_ids
    assert max(map(len, ids)) <= limit


def test_prompt_sets() -> None:
    assert zoo.prompt_sets("emoji-sd") == {"coco": ("calibration", "test"), "sdp": ("test",)}
    assert zoo.prompt_sets("emoji-clip") == {}
    assert len(zoo.prompt_set("emoji-sd", "coco", "calibration")) == 256
    assert len(zoo.prompt_set("emoji-sd", "coco", "test")) == 512
    assert len(zoo.prompt_set("emoji-sd", "sdp", "test")) == 512


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sd-turbo", "coco", "test"), "'sd-turbo'; bundled are emoji-sd, emoji-sdxl, emoji-clip"),
        (("emoji-sd", "parti", "test"), "no prompt set 'parti'; it has coco, sdp"),
        (("emoji-clip", "coco", "test"), "no prompt set 'coco'; it has none"),
        (("emoji-sd", "sdp", "calibration"), "no split 'calibration'; it has test"),
    ],
)
def test_unknown_names_say_what_exists(arguments: tuple[str, str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zoo.prompt_set(*arguments)
