"""Every stage runs, and resumes to the weights of an uninterrupted run; the assembled pipeline generates."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from bitbrush import zoo
from tests.training.conftest import STEPS, TINY_CLIP, TINY_DENOISER, TINY_DENOISER_XL, TINY_SECOND_TOWER, TINY_VAE
from training.emoji.assemble import assemble, assemble_xl, finished, has_xl, lay_out_shipped, load_towers
from training.emoji.clip import contrastive_loss, train_clip
from training.emoji.config import TokenizerConfig
from training.emoji.data import sample_captions
from training.emoji.denoiser import min_snr_weights, train_denoiser
from training.emoji.denoiser_xl import train_denoiser_xl
from training.emoji.loop import Run
from training.emoji.scenes import Sprites
from training.emoji.second_tower import train_second_tower
from training.emoji.tokenizer import load_tokenizer, train_tokenizer
from training.emoji.vae import train_vae

CPU = torch.device("cpu")
STAGES = ("clip", "vae", "denoiser", "second-tower", "denoiser-xl")
Stage = Callable[[Run], None]


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return train_tokenizer(sample_captions(300, seed=0), TokenizerConfig(vocabulary=600))


@pytest.fixture(scope="module")
def trained(tokenizer: CLIPTokenizer, sprites: Sprites, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which every stage ran without interruption."""
    directory = tmp_path_factory.mktemp("trained")
    tokenizer.save_pretrained(directory / "tokenizer")
    for stage in STAGES:
        stage_function(stage, directory, tokenizer, sprites)(Run(directory, CPU))
    return directory


def stage_function(stage: str, inputs: Path, tokenizer: CLIPTokenizer, sprites: Sprites) -> Stage:
    """The stage as a function of the run, fed with what earlier stages left in `inputs`."""
    if stage == "clip":
        return lambda run: train_clip(TINY_CLIP, tokenizer, sprites, run)
    if stage == "vae":
        return lambda run: train_vae(TINY_VAE, sprites, run)
    if stage == "second-tower":
        clip = CLIPModel.from_pretrained(finished(inputs, "clip"))
        return lambda run: train_second_tower(TINY_SECOND_TOWER, tokenizer, clip, sprites, run)
    vae = AutoencoderKL.from_pretrained(finished(inputs, "vae"))
    if stage == "denoiser":
        text_encoder = CLIPTextModel.from_pretrained(finished(inputs, "clip"))
        return lambda run: train_denoiser(TINY_DENOISER, tokenizer, text_encoder, vae, sprites, run)
    towers, grown_from = load_towers(inputs), UNet2DConditionModel.from_pretrained(finished(inputs, "denoiser"))
    return lambda run: train_denoiser_xl(TINY_DENOISER_XL, tokenizer, towers, vae, grown_from, sprites, run)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    (file,) = directory.glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("stage", STAGES)
def test_resumed_run_ends_at_the_same_weights(
    stage: str, trained: Path, tokenizer: CLIPTokenizer, sprites: Sprites, tmp_path: Path
) -> None:
    run_stage = stage_function(stage, trained, tokenizer, sprites)
    run_stage(Run(tmp_path, CPU, until=STEPS // 2))
    assert not (tmp_path / stage).exists()
    run_stage(Run(tmp_path, CPU, save_every=1))
    resumed, uninterrupted = weights(tmp_path / stage), weights(trained / stage)
    assert resumed.keys() == uninterrupted.keys()
    for name, tensor in resumed.items():
        assert torch.equal(tensor, uninterrupted[name]), name
    assert [path.name for path in (tmp_path / "checkpoints" / stage).iterdir()] == [f"step-{STEPS:08d}"]


def test_training_changes_the_weights_with_the_seed(trained: Path, sprites: Sprites, tmp_path: Path) -> None:
    train_vae(TINY_VAE, sprites, Run(tmp_path, CPU, seed=1))
    first, second = weights(trained / "vae"), weights(tmp_path / "vae")
    assert any(not torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_checkpoint_of_another_configuration_is_refused(sprites: Sprites, tmp_path: Path) -> None:
    train_vae(TINY_VAE, sprites, Run(tmp_path, CPU, until=1))
    with pytest.raises(ValueError, match="seed = 0, not 1"):
        train_vae(TINY_VAE, sprites, Run(tmp_path, CPU, seed=1))
    with pytest.raises(ValueError, match="settings"):
        train_vae(replace(TINY_VAE, edge_weight=0.0), sprites, Run(tmp_path, CPU))


def test_an_interrupted_checkpoint_is_ignored(trained: Path, sprites: Sprites, tmp_path: Path) -> None:
    partial = tmp_path / "checkpoints" / "vae" / "partial"
    partial.mkdir(parents=True)
    (partial / "state.safetensors").write_bytes(b"cut off")
    train_vae(TINY_VAE, sprites, Run(tmp_path, CPU))
    uninterrupted = weights(trained / "vae")
    assert all(torch.equal(tensor, uninterrupted[name]) for name, tensor in weights(tmp_path / "vae").items())


def test_assembled_models_load_and_generate(trained: Path) -> None:
    assemble(trained)
    pipeline = StableDiffusionPipeline.from_pretrained(trained / "emoji-sd")
    clip = CLIPModel.from_pretrained(trained / "emoji-clip")
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline.unet, UNet2DConditionModel)
    assert {p.dtype for p in pipeline.unet.parameters()} == {torch.float32}
    assert {p.dtype for p in clip.parameters()} == {torch.float32}
    assert {t.dtype for t in weights(trained / "emoji-sd" / "unet").values()} == {torch.float16}
    image = pipeline("a duck on a blue background", num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 64, 64, 3)
    assert np.isfinite(image).all()


def test_assembled_sdxl_loads_and_generates(trained: Path) -> None:
    assert has_xl(trained)
    assemble_xl(trained)
    pipeline = StableDiffusionXLPipeline.from_pretrained(trained / "emoji-sdxl")
    pipeline.set_progress_bar_config(disable=True)
    assert {t.dtype for t in weights(trained / "emoji-sdxl" / "unet").values()} == {torch.float16}
    image = pipeline("a duck on a blue background", num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 64, 64, 3)
    assert np.isfinite(image).all()


def test_shipped_models_lie_where_the_stages_leave_theirs(tmp_path: Path) -> None:
    lay_out_shipped(tmp_path)
    for stage in ("clip", "vae", "denoiser"):
        assert finished(tmp_path, stage) == tmp_path / stage
    assert load_tokenizer(tmp_path / "tokenizer").model_max_length == 32
    assert not has_xl(tmp_path)
    with pytest.raises(FileExistsError):
        lay_out_shipped(tmp_path)


def test_assembling_needs_every_stage(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="emoji tokenizer"):
        assemble(tmp_path)
    load_tokenizer(trained / "tokenizer").save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(FileNotFoundError, match="stage clip is not complete"):
        assemble(tmp_path)


def test_learned_tokenizer_reads_the_world_as_the_shipped_one() -> None:
    learned = train_tokenizer(sample_captions(20_000, seed=0), TokenizerConfig())
    shipped = CLIPTokenizer.from_pretrained(zoo.model_path("emoji-sd") / "tokenizer")
    for prompt in zoo.prompt_set("emoji-sd", "coco", "test")[:50]:
        assert learned.tokenize(prompt) == shipped.tokenize(prompt)


def test_contrastive_loss_forgives_equal_captions() -> None:
    ids = torch.tensor([[1, 2], [1, 2], [3, 4]])
    confused_twins = torch.tensor([[50.0, 50, 0], [50, 50, 0], [0, 0, 50]])
    assert contrastive_loss(confused_twins, ids) == pytest.approx(torch.log(torch.tensor(2.0)).item() * 2 / 3)
    assert contrastive_loss(confused_twins, torch.arange(6).view(3, 2)) == pytest.approx(0.4621, abs=1e-3)


def test_min_snr_weights_limit_the_clean_end() -> None:
    alphas = torch.tensor([0.99, 0.5, 0.01])
    torch.testing.assert_close(min_snr_weights(alphas, 5.0), torch.tensor([5 / 99, 1.0, 1.0]))
