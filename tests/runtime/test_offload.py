"""Integer layers stay on the device of their kernels: what would take them away one by one is refused at once."""

from collections.abc import Callable
from typing import Any

import accelerate
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline, UNetMotionModel
from diffusers.hooks import apply_group_offloading

from bitbrush.runtime.choose import Choice
from bitbrush.runtime.lowered import lower
from bitbrush.runtime.onednn.runtime import OneDnnRuntime
from bitbrush.runtime.reference import ReferenceRuntime
from bitbrush.runtime.tools import best_tools
from tests.runtime.changes import BLOCK, call, fused, quantized_layers

pytestmark = pytest.mark.usefixtures("exact_products")
CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture
def onednn(tiny_pipe: StableDiffusionPipeline) -> Any:
    lower(tiny_pipe.unet, Choice(OneDnnRuntime(best_tools(), torch.float32), "test"), quantized_layers(tiny_pipe.unet))
    return tiny_pipe.unet


OFFLOADS: dict[str, Callable[[Any, Any], Any]] = {
    "sequential": lambda unet, _: accelerate.cpu_offload(unet, CPU),
    "beside another hook": lambda unet, _: [accelerate.cpu_offload_with_hook(unet, CPU), accelerate.cpu_offload(unet)],
    "to disk": lambda unet, folder: accelerate.disk_offload(unet, folder, CPU),
    "of groups": lambda unet, _: unet.enable_group_offload(CPU, CPU, offload_type="leaf_level"),
}


@pytest.mark.parametrize("name", list(OFFLOADS))
def test_offloading_layers_is_refused_and_changes_nothing(name: str, onednn: Any, tmp_path: Any) -> None:
    before, blocks = call(onednn), fused(onednn)
    with pytest.raises(ValueError, match=r"stay on cpu.*enable_model_cpu_offload.*exclude_modules.*'reference'"):
        OFFLOADS[name](onednn, tmp_path)
    assert torch.equal(call(onednn), before)
    assert fused(onednn) == blocks


@pytest.mark.parametrize("name", ["sequential", "to disk", "of groups"])
def test_the_reference_offloads_layers(name: str, tiny_pipe: StableDiffusionPipeline, tmp_path: Any) -> None:
    unet = tiny_pipe.unet
    lower(unet, Choice(ReferenceRuntime(), "for this test"), quantized_layers(unet))
    before = call(unet)
    OFFLOADS[name](unet, tmp_path)
    assert torch.equal(call(unet), before)


def test_a_layer_that_is_sent_elsewhere_says_where_it_stays(onednn: Any) -> None:
    layer, before = onednn.get_submodule(f"{BLOCK}.attn1.to_q"), call(onednn)
    with pytest.raises(ValueError, match=r"IntegerLinear stays on cpu, where its kernels run, and was sent to meta"):
        layer.to(META)
    layer.to(CPU).half().double()
    assert layer.weight_scale.dtype == torch.float32
    assert torch.equal(call(onednn), before)


def test_groups_that_stay_where_they_are_run(onednn: Any) -> None:
    """The function asks no network for permission. Blocks with hooks are computed layer by layer."""
    before = call(onednn)
    apply_group_offloading(onednn, CPU, CPU, offload_type="leaf_level")
    assert torch.allclose(call(onednn), before, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("make", [ControlNetModel.from_unet, UNetMotionModel.from_unet2d])
def test_networks_are_not_started_from_integers(make: Callable[[Any], Any], onednn: Any) -> None:
    with pytest.raises(ValueError, match=r"has no weight in floating point.*from the full-precision pipeline"):
        make(onednn)
    assert "conv_in.integer_weight" in onednn.state_dict()
