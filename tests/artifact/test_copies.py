"""Copies, pickles and compiled forms of loaded denoisers, and what they tell of themselves."""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

import bitbrush
from bitbrush import Quantization
from bitbrush.artifact.manifest import read_manifest
from bitbrush.artifact.store import read_layer
from bitbrush.runtime.interface import RuntimeUnavailable
from bitbrush.runtime.lowered import lowered_of
from bitbrush.runtime.onednn import probe

Load = Callable[[], StableDiffusionPipeline]


@pytest.fixture(params=["reference", "onednn", "onednn low"])
def load(request: pytest.FixtureRequest, saved: Path) -> Load:
    """Loads one and the same artifact by one of the runtimes."""
    runtime, *low = request.param.split()
    if runtime == "onednn":
        try:
            probe.require_exact_products()
        except RuntimeUnavailable as error:
            pytest.skip(str(error))
    return lambda: bitbrush.load(saved, runtime=runtime, memory="low" if low else "expanded")


@torch.no_grad()
def answers(denoiser: Any, steps: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, 16, generator=generator)
    return [denoiser(x, t, text).sample for t in torch.linspace(999, 1, steps).long()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_copy_answers_alike_and_is_independent(load: Load) -> None:
    denoiser = load().unet
    expected = answers(denoiser)
    copied = copy.deepcopy(denoiser)
    assert type(copied) is type(denoiser)
    assert lowered_of(copied) == lowered_of(denoiser)
    assert same(answers(copied), expected)
    for module in denoiser.modules():  # whatever of the original the copy might still read
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.is_floating_point():
                tensor.data.fill_(torch.nan)
    assert same(answers(copied), expected)


def test_no_module_of_a_copy_belongs_to_the_original(load: Load) -> None:
    """Nor is one reached by a hook, a fused block or a memo: hooks of the original do not run for the copy."""
    denoiser = load().unet
    copied, calls = copy.deepcopy(denoiser), []
    for module in denoiser.modules():
        module.register_forward_pre_hook(lambda *_: calls.append(1))
    answers(copied, steps=1)
    assert not calls
    answers(denoiser, steps=1)
    assert calls


def test_a_pipeline_is_copied(load: Load) -> None:
    pipe = load()
    pipe.set_progress_bar_config(disable=True)
    pictures = [
        one("a cat", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt").images
        for one in (copy.deepcopy(pipe), pipe)
    ]
    assert torch.equal(*pictures)


def test_a_quantization_in_memory_is_copied_and_pickled(quantization: Quantization) -> None:
    """With excluded layers and weights that are held elsewhere."""
    denoiser = quantization.pipeline().unet
    expected = answers(denoiser)
    restored = pickle.loads(pickle.dumps(denoiser))  # noqa: S301 - our own bytes
    assert same(answers(copy.deepcopy(denoiser)), expected)
    assert same(answers(restored), expected)


def test_the_reference_is_pickled(saved: Path) -> None:
    denoiser = bitbrush.load(saved, runtime="reference").unet
    restored = pickle.loads(pickle.dumps(denoiser))  # noqa: S301 - our own bytes
    assert same(answers(restored), answers(denoiser))
    file = io.BytesIO()
    torch.save(denoiser, file)
    file.seek(0)
    assert same(answers(torch.load(file, weights_only=False)), answers(denoiser))


@pytest.mark.parametrize("memory", ["expanded", "low"])
@pytest.mark.parametrize("part", ["", "mid_block", "conv_in"])
def test_weights_in_a_layout_of_kernels_are_not_pickled(saved: Path, memory: str, part: str) -> None:
    denoiser = _onednn(saved, memory)
    for write in (pickle.dumps, lambda module: torch.save(module, io.BytesIO())):
        with pytest.raises(TypeError, match=r"not pickled; .*: bitbrush\.load\(DIRECTORY\)"):
            write(denoiser.get_submodule(part))


def _onednn(saved: Path, memory: str = "expanded") -> Any:
    try:
        probe.require_exact_products()
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
    return bitbrush.load(saved, runtime="onednn", memory=memory).unet


def compiles(count: list[int]) -> Callable[..., Any]:
    """A compiler that counts its graphs and leaves them as they are."""

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        count.append(1)
        return graph.forward

    return backend


@pytest.mark.parametrize("how", ["torch.compile", "module.compile", "repeated blocks"])
@pytest.mark.parametrize("load", ["reference", "onednn"], indirect=True)
def test_compiled_denoisers_answer_alike_at_any_number_of_steps(load: Load, how: str) -> None:
    """More steps than torch compiles a function anew for: no graph is one step's."""
    denoiser, graphs = load().unet, []
    expected = [answers(denoiser, steps) for steps in (3, 12)]
    torch.compiler.reset()
    compiled = denoiser
    match how:
        case "module.compile":
            compiled.compile(backend=compiles(graphs))
        case "repeated blocks":
            compiled.compile_repeated_blocks(backend=compiles(graphs))
        case _:
            compiled = torch.compile(denoiser, backend=compiles(graphs))
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        assert same(answers(compiled, 3), expected[0])
        made = len(graphs)
        assert same(answers(compiled, 12), expected[1])
    assert len(graphs) == made


def test_a_block_that_cannot_be_a_whole_graph_is_refused_with_the_reason(load: Load) -> None:
    denoiser = load().unet
    for compile_ in (denoiser.compile, denoiser.compile_repeated_blocks):
        with pytest.raises(ValueError, match="runtime, so there is no full graph of a quantized denoiser: leave out"):
            compile_(backend="eager", fullgraph=True)


def test_parameters_tell_the_truth(load: Load, saved: Path, tiny_pipe: StableDiffusionPipeline) -> None:
    denoiser, full = load().unet, tiny_pipe.unet
    assert denoiser.num_parameters() == full.num_parameters()
    assert denoiser.num_parameters(only_trainable=True) == denoiser.num_parameters(True) == 0
    tensors = [*denoiser.parameters(), *denoiser.buffers()]
    assert not any(tensor.is_meta for tensor in tensors)
    assert denoiser.get_memory_footprint() == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    quantized = sum(
        torch.Size(layer["shape"]).numel() for layer in read_manifest(saved)["layers"] if not layer["excluded"]
    )
    integers = [one for one in denoiser.parameters() if not one.is_floating_point()]
    if lowered_of(denoiser).runtime == "reference":
        assert not integers
        assert denoiser.get_memory_footprint() >= 4 * quantized
    else:
        # Low memory keeps oneDNN's blocks, wider than these layers; tests/runtime/test_low_memory.py has the sizes.
        assert quantized / 2 <= sum(one.nbytes for one in integers) <= 3 * quantized
        assert denoiser.get_memory_footprint() < full.get_memory_footprint()


def test_small_weights_count_in_either_memory(tiny_pipe: StableDiffusionPipeline, saved: Path) -> None:
    expanded, low = _onednn(saved), _onednn(saved, "low")
    assert low.num_parameters() == expanded.num_parameters() == tiny_pipe.unet.num_parameters()


def test_code_that_asks_for_the_type_of_the_first_parameter_is_told_a_floating_one(load: Load) -> None:
    """As several models of diffusers do of a submodule, to cast to it what they hand on."""
    denoiser = load().unet
    assert denoiser.dtype.is_floating_point
    assert all(next(module.parameters()).is_floating_point() for module in denoiser.modules() if [*module.parameters()])


def test_the_state_is_the_artifacts_integers(load: Load, saved: Path) -> None:
    denoiser = load().unet
    state = denoiser.state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    assert torch.load(file).keys() == state.keys()
    for name in ("conv_in", "mid_block.attentions.0.proj_in", "time_embedding.linear_1"):
        weight = read_layer(saved, name).weight
        if f"{name}.weight" in state:  # the reference's
            assert torch.equal(state[f"{name}.weight"], weight.dequantize())
            continue
        signed = weight.w_q.flatten(1).int() - weight.qparams.zero_point[:, None].int()
        assert torch.equal(state[f"{name}.integer_weight"].flatten(1).int(), signed)
        assert torch.equal(state[f"{name}.weight_scale"], weight.qparams.scale)


def test_other_values_are_refused_by_kernels(saved: Path) -> None:
    denoiser = _onednn(saved)
    before = answers(denoiser)
    with pytest.raises(RuntimeError, match=r"conv_in\.integer_weight is in the layout of kernels and takes no values"):
        denoiser.load_state_dict(denoiser.state_dict())
    assert same(answers(denoiser), before)


def test_other_networks_of_a_pipeline_tell_the_truth_too(saved: Path, tiny_pipe: StableDiffusionPipeline) -> None:
    _onednn(saved)
    pipe = bitbrush.load(saved, runtime="onednn", memory="low")
    for name in ("text_encoder", "vae"):
        own, full = getattr(pipe, name), getattr(tiny_pipe, name)
        assert own.num_parameters() == full.num_parameters()
        assert own.state_dict().keys() == full.state_dict().keys()


def test_a_quantized_pipeline_is_not_quantized_again(load: Load, quantization: Quantization) -> None:
    for pipe in (load(), copy.deepcopy(load()), quantization.pipeline()):
        with pytest.raises(ValueError, match=r"unet is quantized already .*load_full_precision.*recalibrate"):
            bitbrush.quantize(pipe, quantization.recipe, ["a cat", "a dog"])
        with pytest.raises(ValueError, match="quantized already"):
            bitbrush.quantize(pipe, quantization.recipe, ["a cat", "a dog"], generic=True)


def test_a_copy_is_saved_and_what_was_pickled_is_not(load: Load, saved: Path, tmp_path: Path) -> None:
    copy.deepcopy(load().unet).save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "manifest.json").is_file()
    restored = pickle.loads(pickle.dumps(bitbrush.load(saved, runtime="reference").unet))  # noqa: S301 - our own bytes
    with pytest.raises(ValueError, match="are not those of a file"):
        restored.save_pretrained(tmp_path / "other")
