"""save_pretrained and push_to_hub of what is quantized write artifacts that load to the same images."""

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

import bitbrush
from bitbrush.artifact import save_pretrained
from bitbrush.artifact.documents import ArtifactError
from tests.artifact.test_from_pretrained import flip, image

NAME = "someone/quantized"
pytestmark = pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument:UserWarning")  # diffusers' own


class TestPipelines:
    @pytest.mark.parametrize("runtime", ["auto", "reference"])
    def test_what_was_loaded_is_saved(self, saved: Path, tmp_path: Path, runtime: str) -> None:
        pipe = bitbrush.load(saved, runtime=runtime)
        pipe.save_pretrained(tmp_path / "copy")
        first, second = bitbrush.read_manifest(saved), bitbrush.read_manifest(tmp_path / "copy")
        same = ("base_model", "base_model_digest", "recipe", "plan", "denoiser", "layers", "cost", "pipeline_class")
        assert {key: second[key] for key in same} == {key: first[key] for key in same}
        assert {name: second["files"][name] for name in first["files"] if name.startswith("unet/diff")} == {
            name: digest for name, digest in first["files"].items() if name.startswith("unet/diff")
        }
        assert torch.equal(image(bitbrush.load(tmp_path / "copy")), image(bitbrush.load(saved)))
        bitbrush.load(tmp_path / "copy").save_pretrained(tmp_path / "copy")  # onto itself
        assert torch.equal(image(bitbrush.load(tmp_path / "copy")), image(bitbrush.load(saved)))

    def test_what_replaced_a_component_is_saved(self, saved: Path, tmp_path: Path) -> None:
        pipe = bitbrush.load(saved)
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        with torch.no_grad():
            pipe.vae.decoder.conv_out.bias += 0.125
        pipe.save_pretrained(tmp_path / "copy")
        again = bitbrush.load(tmp_path / "copy")
        assert isinstance(again.scheduler, EulerDiscreteScheduler)
        assert torch.equal(image(again), image(pipe))

    def test_copies_are_saved_alike(self, saved: Path, tmp_path: Path) -> None:
        pipe = copy.deepcopy(bitbrush.load(saved))
        pipe.save_pretrained(tmp_path / "copy")
        assert torch.equal(image(bitbrush.load(tmp_path / "copy")), image(pipe))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"safe_serialization": False}, "artifacts hold safetensors alone: leave it out"),
            ({"variant": "fp16"}, "variant is 'fp16', but an artifact has its weights once"),
            ({"max_shard_size": "1GB"}, "max_shard_size is '1GB', but an artifact has its weights once"),
        ],
    )
    def test_what_does_not_apply_is_refused(
        self, saved: Path, tmp_path: Path, options: dict[str, Any], message: str
    ) -> None:
        for owner in (bitbrush.load(saved), bitbrush.load(saved).unet):
            with pytest.raises(ValueError, match=message):
                owner.save_pretrained(tmp_path / "copy", **options)
        assert not (tmp_path / "copy").exists()

    def test_options_by_position_are_obeyed(
        self, saved: Path, tmp_path: Path, tiny_pipe: StableDiffusionPipeline
    ) -> None:
        with pytest.raises(ValueError, match="safe_serialization is False"):
            bitbrush.load(saved).save_pretrained(tmp_path / "copy", False)
        tiny_pipe.save_pretrained(tmp_path / "full", True, "fp16")
        assert list((tmp_path / "full").rglob("*.fp16.safetensors"))

    def test_other_contents_are_not_replaced(self, saved: Path, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("years", encoding="utf-8")
        for owner in (bitbrush.load(saved), bitbrush.load(saved).unet):
            with pytest.raises(ValueError, match="choose another"):
                owner.save_pretrained(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

    def test_weights_that_changed_since_are_refused(self, artifact: Path, tmp_path: Path) -> None:
        pipe = bitbrush.load(artifact)
        flip(artifact / "unet" / "diffusion_pytorch_model.safetensors")
        with pytest.raises(ArtifactError, match="changed since the denoiser was loaded; load it again"):
            pipe.save_pretrained(tmp_path / "copy")
        shutil.rmtree(artifact)
        with pytest.raises(ValueError, match="is gone; load it again"):
            pipe.save_pretrained(tmp_path / "copy")
        assert not (tmp_path / "copy").exists()

    def test_an_adapter_is_to_be_unloaded_first(self, saved: Path, tmp_path: Path) -> None:
        peft = pytest.importorskip("peft")
        pipe = bitbrush.load(saved)
        pipe.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]))
        with pytest.raises(ValueError, match=r"has an adapter .*: unload it first, pipe\.unload_lora_weights"):
            pipe.save_pretrained(tmp_path / "copy")
        pipe.unload_lora_weights()
        pipe.save_pretrained(tmp_path / "copy")


class TestDenoisers:
    @pytest.fixture
    def alone(self, saved: Path, tmp_path: Path) -> Path:
        bitbrush.load(saved).unet.save_pretrained(tmp_path / "alone")
        return tmp_path / "alone"

    def test_it_loads_and_is_put_into_a_pipeline(self, saved: Path, alone: Path, tmp_path: Path) -> None:
        own = bitbrush.load(saved)
        pipe = StableDiffusionPipeline.from_pretrained(saved, unet=UNet2DConditionModel.from_pretrained(alone))
        assert torch.equal(image(pipe), image(own))
        pipe.save_pretrained(tmp_path / "whole")
        assert bitbrush.read_manifest(tmp_path / "whole")["plan"] == bitbrush.read_manifest(saved)["plan"]
        assert torch.equal(image(bitbrush.load(tmp_path / "whole")), image(own))
        pipe.unet.save_pretrained(alone)  # onto itself

    def test_its_origin_is_what_is_known(self, saved: Path, alone: Path) -> None:
        manifest = json.loads((alone / "manifest.json").read_text(encoding="utf-8"))
        whole = bitbrush.read_manifest(saved)
        kept = ("base_model", "base_model_digest", "recipe", "layers", "plan")
        assert {key: manifest[key] for key in kept} == {key: whole[key] for key in kept}
        assert manifest["format"] == "bitbrush-denoiser"
        assert manifest.keys().isdisjoint({"pipeline_class", "cost"})
        assert "UNet2DConditionModel.from_pretrained" in (alone / "README.md").read_text(encoding="utf-8")

    def test_it_is_no_pipeline(self, alone: Path) -> None:
        with pytest.raises(ArtifactError, match=r"holds a denoiser without a pipeline: load it with its class"):
            bitbrush.load(alone)

    def test_what_was_altered_is_refused(self, alone: Path) -> None:
        for name, change in {"config.json": b" ", "diffusion_pytorch_model.safetensors": b"\0"}.items():
            content = (alone / name).read_bytes()
            (alone / name).write_bytes(content + change)
            with pytest.raises(ArtifactError, match=f"{name} was altered or truncated"):
                UNet2DConditionModel.from_pretrained(alone)
            (alone / name).write_bytes(content)
        (alone / "evil.py").write_text("", encoding="utf-8")
        with pytest.raises(ArtifactError, match=r"evil\.py is not listed"):
            UNet2DConditionModel.from_pretrained(alone)


class Hub:
    """Repositories in a folder, in the layout of the hub's cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create_repo(self, repo_id: str, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, *, repo_id: str, folder_path: str | Path, path_in_repo: str | None = None, **_: Any) -> str:
        repository = self.folder / f"models--{repo_id.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
        shutil.copytree(folder_path, repository / "snapshots" / ("0" * 40) / (path_in_repo or ""))
        return repo_id


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub")
    for module in (save_pretrained, diffusers.utils.hub_utils):
        monkeypatch.setattr(module, "create_repo", made.create_repo)
    monkeypatch.setattr(diffusers.utils.hub_utils, "upload_folder", made.upload_folder)
    return made


@pytest.mark.parametrize("by", ["push_to_hub", "save_pretrained"])
def test_a_pipeline_is_pushed_and_loads_by_its_id(saved: Path, hub: Hub, tmp_path: Path, by: str) -> None:
    pipe = bitbrush.load(saved)
    if by == "push_to_hub":
        pipe.push_to_hub(NAME, private=True, token="secret", commit_message="quantized")
    else:
        pipe.save_pretrained(tmp_path / "copy", push_to_hub=True, repo_id=NAME)
    options = {"cache_dir": hub.folder, "local_files_only": True}
    assert torch.equal(image(DiffusionPipeline.from_pretrained(NAME, **options)), image(pipe))
    denoiser = UNet2DConditionModel.from_pretrained(NAME, subfolder="unet", **options)
    assert torch.equal(image(StableDiffusionPipeline.from_pretrained(saved, unet=denoiser)), image(pipe))
    (snapshot,) = (hub.folder / "models--someone--quantized" / "snapshots").iterdir()
    assert "bitbrush" in (snapshot / "README.md").read_text(encoding="utf-8")
    flip(snapshot / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ArtifactError, match="was altered or truncated"):
        DiffusionPipeline.from_pretrained(NAME, **options)
    with pytest.raises(ArtifactError, match="was altered or truncated"):
        UNet2DConditionModel.from_pretrained(NAME, subfolder="unet", **options)


@pytest.mark.parametrize("subfolder", [None, "denoiser"])
def test_a_denoiser_is_pushed_and_loads_by_its_id(saved: Path, hub: Hub, subfolder: str | None) -> None:
    own = bitbrush.load(saved)
    own.unet.push_to_hub(NAME, subfolder=subfolder)
    given: dict[str, Any] = {} if subfolder is None else {"subfolder": subfolder}
    denoiser = UNet2DConditionModel.from_pretrained(NAME, cache_dir=hub.folder, local_files_only=True, **given)
    assert torch.equal(image(StableDiffusionPipeline.from_pretrained(saved, unet=denoiser)), image(own))


def test_a_repository_without_its_manifest_is_refused(saved: Path, hub: Hub) -> None:
    bitbrush.load(saved).unet.push_to_hub(NAME)
    (snapshot,) = (hub.folder / "models--someone--quantized" / "snapshots").iterdir()
    (snapshot / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match=r"a quantized denoiser and no manifest\.json; upload the artifact whole"):
        UNet2DConditionModel.from_pretrained(NAME, cache_dir=hub.folder, local_files_only=True)
