"""LoRA files: fused as their formula says, recorded, and refused where they do not belong."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
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
    assert "--lora a.safetensors@0.5 --lora 'b c.safetensors@1'" in quantize_command(manifest)


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


KOHYA = {
    "unet": ("lora_unet_", ("attn1.to_q", "attn2.to_k", "ff.net.2", "proj_in", "conv1")),
    "text_encoder": ("lora_te_", ("q_proj", "fc1")),
}


def kohya_name(component: str, layer: str) -> str:
    """CLIP's layers are below ``text_model`` there, whatever transformers makes of it."""
    path = layer if component == "unet" else f"text_model.{layer.removeprefix('text_model.')}"
    return KOHYA[component][0] + path.replace(".", "_")


def as_kohya_writes(
    pipe: StableDiffusionPipeline, components: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[tuple[str, str], Tensor]]:
    """Tensors of a file, every layer with a rank and alpha of its own; and the updates by component and weight."""
    tensors: dict[str, Tensor] = {}
    updates: dict[tuple[str, str], Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for component in components:
        for name, module in getattr(pipe, component).named_modules():
            if name.endswith(KOHYA[component][1]) and hasattr(module, "weight"):
                rank, alpha = 1 + len(updates) % 3, 0.5 + len(updates) % 4
                rows, *columns = module.weight.shape
                down = torch.randn(rank, *columns, generator=generator)
                up = torch.randn(rows, rank, *[1] * (len(columns) - 1), generator=generator)
                key = kohya_name(component, name)
                tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
                tensors[f"{key}.alpha"] = torch.tensor(alpha)
                product = (up.flatten(1) @ down.flatten(1)).view_as(module.weight)
                updates[component, f"{name}.weight"] = alpha / rank * product
    return tensors, updates


@pytest.mark.usefixtures("peft")
@pytest.mark.parametrize("components", [("unet",), ("text_encoder",), ("unet", "text_encoder")])
@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_every_layer_has_its_own_rank_and_alpha(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, components: tuple[str, ...], scale: float
) -> None:
    """In the files of kohya's programs, which adapt convolutions and text encoders as well."""
    tensors, updates = as_kohya_writes(tiny_pipe, components)
    save_file(tensors, tmp_path / "l.safetensors")
    before = {name: getattr(tiny_pipe, name).state_dict() for name in KOHYA}
    before = {name: {key: tensor.clone() for key, tensor in state.items()} for name, state in before.items()}
    assert fuse_lora(tiny_pipe, Lora(tmp_path / "l.safetensors", scale)) == len(updates) > len(components)
    for name, state in before.items():
        after = getattr(tiny_pipe, name).state_dict()
        assert after.keys() == state.keys()
        for key, tensor in after.items():
            update = scale * updates.get((name, key), torch.zeros(()))
            assert torch.allclose(tensor, state[key] + update, atol=1e-5), (name, key)


@pytest.mark.usefixtures("peft")
def test_second_text_encoders(tmp_path: Path) -> None:
    pipe = pipeline(CASES["sdxl"])
    down, up = factors()
    layers = {f"lora_te{i}_text_model_encoder_layers_1_self_attn_v_proj": (down * i, up) for i in (1, 2)}
    file = {f"{key}.lora_down.weight": pair[0] for key, pair in layers.items()}
    file |= {f"{key}.lora_up.weight": pair[1].clone() for key, pair in layers.items()}
    save_file(file, tmp_path / "l.safetensors")
    encoders = [pipe.text_encoder, pipe.text_encoder_2]
    weights = [
        next(module.weight for name, module in one.named_modules() if name.endswith("layers.1.self_attn.v_proj"))
        for one in encoders
    ]
    before = [weight.detach().clone() for weight in weights]
    assert fuse_lora(pipe, Lora(tmp_path / "l.safetensors")) == 2
    for i, (weight, earlier) in enumerate(zip(weights, before, strict=True), 1):
        assert torch.allclose(weight, earlier + i * up @ down, atol=1e-5)


@pytest.mark.usefixtures("peft")
def test_a_text_encoder_beside_a_transformer_is_adapted_once(tmp_path: Path) -> None:
    pipe = pipeline(CASES["flux-dev"])
    down, up = factors(24, 24)
    text, layer = "lora_te1_text_model_encoder_layers_1_self_attn_v_proj", "transformer_blocks.0.attn.to_q"
    tensors = {f"{text}.lora_down.weight": down, f"{text}.lora_up.weight": up, f"{text}.alpha": torch.tensor(1.0)}
    tensors |= {f"transformer.{layer}.lora_A.weight": down.clone(), f"transformer.{layer}.lora_B.weight": up.clone()}
    save_file(tensors, tmp_path / "l.safetensors")
    modules = dict(pipe.text_encoder.named_modules())
    (adapted,) = (module for name, module in modules.items() if name.endswith("layers.1.self_attn.v_proj"))
    weights = [adapted.weight.detach().clone(), pipe.transformer.get_submodule(layer).weight.detach().clone()]
    assert fuse_lora(pipe, Lora(tmp_path / "l.safetensors")) == 2
    assert torch.allclose(adapted.weight, weights[0] + 0.5 * up @ down, atol=1e-5)
    assert torch.allclose(pipe.transformer.get_submodule(layer).weight, weights[1] + up @ down, atol=1e-5)


@pytest.mark.usefixtures("peft")
class TestRefused:
    def test_a_text_encoder_of_another_model(self, tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
        down, up = factors(columns=24)
        for layer, message in (("0_mlp_fc1", "another architecture: lora_te_"), ("9_mlp_fc1", "of which none are in")):
            key = f"lora_te_text_model_encoder_layers_{layer}"
            save_file({f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}, tmp_path / "l.safetensors")
            with pytest.raises(ValueError, match=message):
                fuse_lora(tiny_pipe, Lora(tmp_path / "l.safetensors"))

    @pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
    def test_one_factor_of_two(self, tiny_pipe: StableDiffusionPipeline, tmp_path: Path, factor: str) -> None:
        """Diffusers would start the other from zeros, or from noise."""
        file = written(tmp_path / "l.safetensors", LAYER, OTHER)
        tensors = load_file(file)
        del tensors[f"unet.{OTHER}.{factor}.weight"]
        save_file(tensors, file)
        with pytest.raises(
            ValueError, match=r"l\.safetensors has unet\..*attn2\.to_k\.lora_.* without its other factor"
        ):
            fuse_lora(tiny_pipe, Lora(file))

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_values_that_are_not_finite(self, tiny_pipe: StableDiffusionPipeline, tmp_path: Path, value: float) -> None:
        tensors, _ = as_kohya_writes(tiny_pipe, ("unet", "text_encoder"))
        key = next(key for key in tensors if key.startswith("lora_te_"))
        tensors[key][0] = value
        save_file(tensors, tmp_path / "l.safetensors")
        with pytest.raises(ValueError, match=rf"l\.safetensors holds NaN or infinity in {key}"):
            fuse_lora(tiny_pipe, Lora(tmp_path / "l.safetensors"))

    def test_magnitudes_that_diffusers_leaves_out(self, tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
        tensors, _ = as_kohya_writes(tiny_pipe, ("unet",))
        key = next(iter(tensors)).removesuffix("lora_down.weight")
        save_file({**tensors, f"{key}dora_scale": torch.ones(1, 8)}, tmp_path / "l.safetensors")
        with pytest.raises(ValueError, match=r"is a DoRA .*, which cannot be fused"):
            fuse_lora(tiny_pipe, Lora(tmp_path / "l.safetensors"))

    def test_nothing_stays_attached(self, tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
        before = set(tiny_pipe.unet.state_dict())
        file = written(tmp_path / "l.safetensors", LAYER, "up_blocks.7.attn.to_q")
        with pytest.raises(ValueError, match="of which 1 are in"):
            fuse_lora(tiny_pipe, Lora(file))
        assert set(tiny_pipe.unet.state_dict()) == before


DOWN, UP = f"unet.{LAYER}.lora_A.weight", f"unet.{LAYER}.lora_B.weight"
FITTING = {DOWN: torch.ones(2, 16), UP: torch.ones(16, 2)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "holds no updates of layers among 0 tensors"),
        ({"unet.conv_in.weight": torch.ones(2, 2)}, "holds no updates of layers among 1 tensors"),
        ({**FITTING, f"unet.{OTHER}.hada_w1_a": torch.ones(2, 2)}, "hada_w1_a, which cannot be fused"),
        ({**FITTING, f"unet.{OTHER}.diff": torch.ones(2, 2)}, "diff, which cannot be fused"),
        ({**FITTING, UP: torch.ones(16, 3)}, r"is damaged: .* is \(2, 16\), and .* is \(16, 3\)"),
        ({DOWN: torch.ones(0, 16), UP: torch.ones(16, 0)}, "is damaged"),
        ({**FITTING, DOWN: torch.ones(16)}, r"in the shape \(16,\)"),
        ({**FITTING, f"unet.{LAYER}.alpha": torch.ones(2)}, r"alpha in the shape \(2,\)"),
        ({key: tensor.to(torch.int8) for key, tensor in FITTING.items()}, "in I8; give a LoRA in floating point"),
    ],
)
def test_files_that_are_no_lora_are_refused_by_their_header(
    tmp_path: Path, tensors: dict[str, Tensor], message: str
) -> None:
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    with pytest.raises(ValueError, match=rf"LoRA .*x\.safetensors .*{message}"):
        Lora(path).require()


@pytest.mark.parametrize("scale", ["nan", "inf", "-inf", "1e300", "101", "x"])
def test_scales_are_finite_numbers(tmp_path: Path, scale: str) -> None:
    with pytest.raises(ValueError, match=f"LoRA is 'x.safetensors@{scale}'"):
        Lora.parse(f"x.safetensors@{scale}")


@pytest.mark.usefixtures("peft")
@pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters")
def test_updates_of_layers_by_part_of_their_names_are_refused(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    """peft adapts every layer whose name ends so, with zeros: nothing of the file would be fused."""
    before = {key: tensor.clone() for key, tensor in tiny_pipe.unet.state_dict().items()}
    path = written(tmp_path / "x.safetensors", "attn1.to_q", LAYER)
    with pytest.raises(ValueError, match=r"x\.safetensors"):
        fuse_lora(tiny_pipe, Lora(path))
    assert all(torch.equal(tensor, before[key]) for key, tensor in tiny_pipe.unet.state_dict().items())
