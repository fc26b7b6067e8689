"""LoRA files: fused as their formula says, recorded, and refused where they do not belong."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

import bitbrush
from bitbrush import Lora, ModelOptions, load_full_precision
from bitbrush.artifact.card import quantize_command
from bitbrush.sources import lora as lora_module
from bitbrush.sources.lora import fuse_lora
from tests.artifact.pipelines import CASES, pipeline

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
OTHER = "up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def factors(rows: int = 16, columns: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, columns, generator=generator), torch.randn(rows, 2, generator=generator)


def written(path: Path, *layers: str, columns: int = 16, network: str = "unet") -> Path:
    down, up = factors(columns=columns)
    tensors = {}
    for layer in layers:
        tensors |= {f"{network}.{layer}.lora_A.weight": down.clone(), f"{network}.{layer}.lora_B.weight": up.clone()}
    save_file(tensors, path)
    return path


@pytest.fixture
def peft() -> None:
    pytest.importorskip("peft", reason="the extra 'lora' is not installed")


@pytest.mark.usefixtures("peft")
@pytest.mark.parametrize("scale", [1.0, 0.25, -1.0])
def test_fused_is_the_weight_plus_scale_times_the_product(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, scale: float
) -> None:
    unet = tiny_pipe.unet
    before = {key: tensor.clone() for key, tensor in unet.state_dict().items()}
    lora = Lora(written(tmp_path / "l.safetensors", LAYER, OTHER), scale)
    assert fuse_lora(tiny_pipe, lora) == 2
    down, up = factors()
    assert unet.state_dict().keys() == before.keys()  # no adapter stays behind
    for key, tensor in unet.state_dict().items():
        update = scale * up @ down if key in {f"{LAYER}.weight", f"{OTHER}.weight"} else 0
        assert torch.allclose(tensor, before[key] + update, atol=1e-5), key


@pytest.mark.usefixtures("peft")
def test_fused_one_after_the_other_on_loading_and_recorded(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    tiny_pipe.save_pretrained(tmp_path / "tiny")
    first, second = written(tmp_path / "a.safetensors", LAYER), written(tmp_path / "b c.safetensors", LAYER, OTHER)
    options = ModelOptions(loras=(Lora(first, 0.5), Lora(second)))
    pipe = load_full_precision(tmp_path / "tiny", options)
    down, up = factors()
    expected = tiny_pipe.unet.get_submodule(LAYER).weight + 1.5 * up @ down
    assert torch.allclose(pipe.unet.get_submodule(LAYER).weight, expected, atol=1e-5)

    recipe = bitbrush.METHODS["rtn"].recipe({"steps": 2, "num_prompts": 1})
    bitbrush.save(
        bitbrush.quantize(pipe, recipe, ["a cat"]), tmp_path / "made", base_model="someone/tiny", options=options
    )
    manifest = bitbrush.read_manifest(tmp_path / "made")
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second)]
    assert manifest["base_model_options"]["loras"] == [
        {"file": "a.safetensors", "sha256": digests[0], "scale": 0.5},
        {"file": "b c.safetensors", "sha256": digests[1], "scale": 1.0},
    ]
    assert "--lora a.safetensors@0.5 --lora 'b c.safetensors'@1" in quantize_command(manifest)


@pytest.mark.usefixtures("peft")
def test_another_architecture_is_refused(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    file = written(tmp_path / "l.safetensors", LAYER, columns=24)
    with pytest.raises(
        ValueError, match=r"l\.safetensors does not fit StableDiffusionPipeline; .*another architecture"
    ):
        fuse_lora(tiny_pipe, Lora(file))
    with pytest.raises(ValueError, match="PixArtAlphaPipeline takes no LoRA"):
        fuse_lora(pipeline(CASES["pixart"]), Lora(file))


@pytest.mark.usefixtures("peft")
def test_what_matches_nothing_or_a_part_is_refused(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    none = written(tmp_path / "none.safetensors", "transformer_blocks.0.attn.to_q", network="transformer")
    with pytest.raises(ValueError, match=r"none\.safetensors holds updates of 1 layers, of which none are in"):
        fuse_lora(tiny_pipe, Lora(none))
    part = written(tmp_path / "part.safetensors", LAYER, "up_blocks.7.attn.to_q")
    with pytest.raises(ValueError, match=r"part\.safetensors holds updates of 2 layers, of which 1 are in"):
        fuse_lora(tiny_pipe, Lora(part))


@pytest.mark.parametrize(
    ("text", "file", "scale"),
    [("a.safetensors", "a.safetensors", 1.0), ("a@b.safetensors@0.8", "a@b.safetensors", 0.8), ("x@-1", "x", -1.0)],
)
def test_file_and_scale(text: str, file: str, scale: float) -> None:
    assert Lora.parse(text) == Lora(Path(file), scale)


def test_a_file_name_with_an_at_sign(tmp_path: Path) -> None:
    path = written(tmp_path / "me@home.safetensors", LAYER)
    assert Lora.parse(str(path)) == Lora(path)
    with pytest.raises(ValueError, match=r"LoRA is '.*away@home', .*|expected FILE or FILE@SCALE"):
        Lora.parse("away@home")


def test_what_is_no_lora_is_said_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(lora: Lora) -> str:
        with pytest.raises(ValueError, match="LoRA") as caught:
            load_full_precision("emoji-sd", ModelOptions(loras=(lora,)))
        return str(caught.value)

    assert refused(Lora(tmp_path / "missing.safetensors")).endswith("missing.safetensors is no file")
    (tmp_path / "broken.safetensors").write_text("no tensors", encoding="utf-8")
    assert "is no intact safetensors file" in refused(Lora(tmp_path / "broken.safetensors"))
    file = written(tmp_path / "l.safetensors", LAYER)
    shutil.copy(file, tmp_path / "copy.safetensors")
    monkeypatch.setattr(lora_module.importlib.util, "find_spec", lambda _: None)
    assert "needs the package peft: pip install 'bitbrush[lora]'" in refused(Lora(file))
