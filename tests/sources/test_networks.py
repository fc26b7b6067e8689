"""Checkpoints that are damaged, trimmed or of another kind: loaded whole, or refused by the name of what is wrong."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

import bitbrush
from bitbrush import ModelOptions, load_full_precision
from bitbrush.session.offload import Offload
from bitbrush.sources import models
from bitbrush.sources.model_names import MODEL_INDEX, UnknownModelError
from bitbrush.sources.models import load_source
from bitbrush.sources.networks import is_finite, load_pipeline
from tests.artifact.original_layout import original_layout

Edit = Callable[[dict[str, Tensor], str], None]
TENSORS = {
    "unet": "mid_block.resnets.0.conv1.weight",
    "vae": "decoder.conv_out.weight",
    "text_encoder": "encoder.layers.0.mlp.fc1.weight",
}


def lacking(tensors: dict[str, Tensor], key: str) -> None:
    del tensors[key]


def reshaped(tensors: dict[str, Tensor], key: str) -> None:
    tensors[key] = tensors[key][:-1].clone()


def with_nan(tensors: dict[str, Tensor], key: str) -> None:
    tensors[key].view(-1)[-1] = torch.nan


def with_infinity(tensors: dict[str, Tensor], key: str) -> None:
    tensors[key].view(-1)[0] = -torch.inf


def in_integers(tensors: dict[str, Tensor], key: str) -> None:
    tensors[key] = (100 * tensors[key]).to(torch.int8)


def crowded(tensors: dict[str, Tensor], _: str) -> None:
    tensors["another.weight"] = torch.ones(2)


DAMAGES = {
    lacking: r"lacks 1 of its \d+ tensors \({key}\)",
    reshaped: r"{key}.* shape",
    in_integers: r"has integers for weights \({key}\)",
    with_nan: r"holds NaN or infinity in 1 of its \d+ tensors \({key}\)",
    with_infinity: r"holds NaN or infinity in 1 of its \d+ tensors \({key}\)",
}


def edit(file: Path, change: Edit, key: str) -> str:
    """Changes a tensor of a file; gives its name there, which in text encoders depends on transformers' version."""
    tensors = load_file(file)
    (own,) = (name for name in tensors if name.endswith(key))
    change(tensors, own)
    save_file(tensors, file, metadata={"format": "pt"})
    return own


@contextmanager
def edited_index(folder: Path) -> Iterator[dict[str, object]]:
    index = json.loads((folder / MODEL_INDEX).read_text(encoding="utf-8"))
    yield index
    (folder / MODEL_INDEX).write_text(json.dumps(index), encoding="utf-8")


@pytest.fixture
def model(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> Path:
    tiny_pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def load_lean(model: Path) -> DiffusionPipeline:
    """As quantize does."""
    return load_source(model, offload=Offload(model))


@pytest.mark.parametrize("component", TENSORS)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("load", [load_full_precision, load_lean])
def test_a_damaged_network_is_refused_by_name(
    model: Path, component: str, damage: Edit, load: Callable[[Path], DiffusionPipeline]
) -> None:
    (file,) = (model / component).glob("*.safetensors")
    edit(file, damage, TENSORS[component])
    message = DAMAGES[damage].format(key=r"[\w.]*" + TENSORS[component].replace(".", r"\."))
    with pytest.raises(UnknownModelError, match=rf"{component} \(\w+\).*{message}.*fetch it again"):
        load(model)


def test_tensors_that_belong_nowhere(model: Path) -> None:
    """A denoiser with more of them than its configuration makes is another; text encoders are often cut short."""
    for component in ("unet", "vae"):
        (file,) = (model / component).glob("*.safetensors")
        before = file.read_bytes()
        edit(file, crowded, TENSORS[component])
        with pytest.raises(UnknownModelError, match=rf"{component}.* has no place for tensors in its files \(another"):
            load_full_precision(model)
        file.write_bytes(before)
    (file,) = (model / "text_encoder").glob("*.safetensors")
    edit(file, crowded, TENSORS["text_encoder"])
    with pytest.warns(UserWarning, match=r"text_encoder .* has no place for tensors .*another\.weight.*left out"):
        load_full_precision(model)


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
@pytest.mark.parametrize("in_index", [True, False])
def test_shards_that_lack_a_tensor(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, component: str, in_index: bool
) -> None:
    """Whether or not the index still lists it."""
    model = tmp_path / "model"
    tiny_pipe.save_pretrained(model, max_shard_size="20KB")
    (index,) = (model / component).glob("*.index.json")
    listed = json.loads(index.read_text(encoding="utf-8"))
    (own,) = (name for name in listed["weight_map"] if name.endswith(TENSORS[component]))
    edit(model / component / listed["weight_map"][own], lacking, own)
    if not in_index:
        del listed["weight_map"][own]
        index.write_text(json.dumps(listed), encoding="utf-8")
    with pytest.raises(UnknownModelError, match=rf"{component} .*lacks 1 of its \d+ tensors .*{TENSORS[component]}"):
        load_full_precision(model)


@pytest.mark.parametrize("prefix", ["model.diffusion_model", "first_stage_model", "cond_stage_model"])
@pytest.mark.parametrize("damage", [lacking, with_nan])
def test_single_files(
    tiny_pipe: StableDiffusionPipeline, model: Path, tmp_path: Path, prefix: str, damage: Edit
) -> None:
    tensors = original_layout(tiny_pipe)
    key = [name for name in tensors if name.startswith(prefix) and name.endswith("weight")][-1]
    damage(tensors, key)
    save_file(tensors, tmp_path / "one.safetensors")
    with pytest.raises(
        ValueError, match=r"[\w)]+ (lacks|holds NaN or infinity in) 1 of its \d+ tensors \([\w.]+weight\)"
    ):
        load_full_precision(tmp_path / "one.safetensors", ModelOptions(config=str(model)))


class TestVariants:
    @pytest.mark.parametrize("shards", ["10GB", "20KB"])
    @pytest.mark.parametrize("load", [load_full_precision, load_lean])
    def test_the_only_one_is_found(
        self, tiny_pipe: StableDiffusionPipeline, tmp_path: Path, shards: str, load: Callable[[Path], DiffusionPipeline]
    ) -> None:
        half = tiny_pipe.to(torch.float16)
        half.save_pretrained(tmp_path / "half", variant="fp16", max_shard_size=shards)
        assert torch.equal(load(tmp_path / "half").unet.conv_in.bias, half.unet.conv_in.bias.float())

    def test_files_of_no_variant_come_first(self, tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
        tiny_pipe.save_pretrained(tmp_path / "model")
        with torch.no_grad():
            tiny_pipe.unet.conv_in.bias.fill_(3)
        tiny_pipe.unet.save_pretrained(tmp_path / "model" / "unet", variant="ema")
        assert load_full_precision(tmp_path / "model").unet.conv_in.bias[0] != 3
        asked = load_full_precision(tmp_path / "model", ModelOptions(variant="ema"))  # the others have none
        assert asked.unet.conv_in.bias[0] == 3

    def test_several_and_none_without(self, tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
        for variant in ("ema", "fp16"):
            tiny_pipe.save_pretrained(tmp_path / "model", variant=variant)
        with pytest.raises(UnknownModelError, match=r"holds weights of variant ema and fp16, but none without"):
            load_full_precision(tmp_path / "model")
        load_full_precision(tmp_path / "model", ModelOptions(variant="ema"))
        with pytest.raises(UnknownModelError, match=r"with variant 'old' cannot be loaded: none of its components"):
            load_full_precision(tmp_path / "model", ModelOptions(variant="old"))

    def test_a_repository_of_half_precision_alone_is_downloaded_so(
        self, tiny_pipe: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What diffusers downloads without a variant are then the configurations."""
        asked: list[str | None] = []

        def download(name: str, *, revision: str | None, variant: str | None) -> str:
            asked.append(variant)
            tiny_pipe.save_pretrained(tmp_path / "snapshot", variant="fp16")
            if variant is None:
                for file in (tmp_path / "snapshot").rglob("*.safetensors"):
                    file.unlink()
            return str(tmp_path / "snapshot")

        monkeypatch.setattr(DiffusionPipeline, "download", download)
        monkeypatch.setattr(models, "find_model", lambda model, _: model)
        assert load_full_precision("someone/half").unet is not None
        assert asked == [None, "fp16"]


class TestLeftOut:
    def test_a_safety_checker_that_is_listed_but_absent(self, model: Path) -> None:
        with edited_index(model) as index:
            index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
            index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
            index["requires_safety_checker"] = True
        with pytest.warns(UserWarning, match="lists a safety checker but does not hold it: images are not checked"):
            pipe = load_full_precision(model)
        assert pipe.safety_checker is pipe.feature_extractor is None

    @pytest.mark.parametrize("name", ["vae", "text_encoder", "image_encoder", "tokenizer", "scheduler"])
    def test_anything_else_that_is_listed_must_be_there(self, model: Path, name: str) -> None:
        if (model / name).exists():
            (model / name).rename(model / "elsewhere")
        with edited_index(model) as index:
            index["image_encoder"] = (
                ["transformers", "CLIPVisionModelWithProjection"] if "image" in name else [None] * 2
            )
        with pytest.raises(UnknownModelError, match=rf"lists {name} \(\w+\), but there is no folder .*/{name};"):
            load_full_precision(model)

    def test_what_the_index_leaves_out_is_none(self, model: Path) -> None:
        """Even where the pipeline's class does not call it optional."""
        with edited_index(model) as index:
            index["vae"] = [None, None]
        assert load_full_precision(model).vae is None


def test_an_artifact_is_no_full_precision_model(saved: Path, tmp_path: Path) -> None:
    for load in (load_full_precision, load_lean, models.find_model):
        with pytest.raises(
            UnknownModelError, match=r"is a quantized artifact.* give the one .*made of \(someone/tiny\)"
        ):
            load(saved)


def test_a_hub_id_of_an_artifact_is_no_full_precision_model(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found out from its manifest alone, before anything large is downloaded."""
    monkeypatch.setattr(models, "require_known", lambda *_: None)
    monkeypatch.setattr(models, "hf_hub_download", lambda _, name, **__: str(saved / name))
    with pytest.raises(UnknownModelError, match=r"'someone/quantized' is a quantized artifact.*\(someone/tiny\)"):
        models.find_model("someone/quantized")


def test_another_program_may_have_a_manifest(model: Path) -> None:
    (model / "manifest.json").write_text('{"name": "a web app"}', encoding="utf-8")
    load_full_precision(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_is_finite(dtype: torch.dtype) -> None:
    tensor = torch.full((3, 5), 6e4).to(dtype)  # a sum would overflow
    assert is_finite(tensor)
    assert is_finite(torch.empty(0, dtype=dtype))
    for value in (torch.nan, torch.inf, -torch.inf):
        tensor[1, 2] = value
        assert not is_finite(tensor)
    assert is_finite(torch.ones(3, dtype=torch.int32))


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_networks_of_an_artifact_are_read_like_a_models(artifact: Path, part: str) -> None:
    """Where hashes cannot tell, as of an artifact that was saved incomplete."""
    (file,) = (artifact / part).glob("*.safetensors")
    edit(file, lacking, TENSORS[part])
    with pytest.raises(ValueError, match=rf"{part} \(\w+\) lacks 1 of its"):
        load_pipeline(artifact, components={"unet": None})
    with pytest.raises(ValueError, match="was altered"):
        bitbrush.load(artifact)


UNET, TEXT = "unet/config.json", "text_encoder/config.json"
SHARDS = "unet/diffusion_pytorch_model.safetensors.index.json"
UNUSABLE: dict[str, tuple[str, Any, str]] = {
    "a list for a pipeline's index": (MODEL_INDEX, [], "is no table of components"),
    "a pipeline of no class": (MODEL_INDEX, {"_class_name": None}, "_class_name is None, no pipeline of diffusers"),
    "a pipeline's own code": (MODEL_INDEX, {"_class_name": ["pipeline", "Mine"]}, "no pipeline of diffusers"),
    "a list for a configuration": (UNET, [], r"unet \(.*config.json is no table of settings"),
    "a text for a width": (TEXT, {"hidden_size": "eight"}, r"text_encoder \(CLIPTextModel\).*hidden_size"),
    "a quantized denoiser": (
        UNET,
        {"quantization_config": {"quant_method": "fp4"}},
        "quantized already .*fp4.*full-pre",
    ),
    "an index of no shards": (SHARDS, {}, r"unet.*malformed.*weight_map"),
    "an index that is a list": (SHARDS, [], r"unet.*malformed"),
}


@pytest.mark.parametrize("name", list(UNUSABLE))
def test_a_file_of_unexpected_content_is_refused(name: str, tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    tiny_pipe.save_pretrained(tmp_path)
    path, content, message = UNUSABLE[name]
    file = tmp_path / path
    if path.endswith(".index.json"):
        (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    elif isinstance(content, dict):
        content = {**json.loads(file.read_text(encoding="utf-8")), **content}
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UnknownModelError, match=message):
        load_full_precision(tmp_path)
