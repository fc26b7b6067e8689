"""A quantized denoiser made cheaply, for timing: its integers are real, nobody would want its pictures.

Weights: nearest, minimum to maximum. Activations: the range that one call was seen to need, widened a little more from
step to step, so that every timestep has a scale and a zero point of its own, as after calibration. The layers next to
the latents are as always, and the last fifth of the steps is relaxed to ten bits.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from bitbrush.artifact.denoiser import WEIGHTS
from bitbrush.artifact.quantization_config import StoredConfig
from bitbrush.artifact.tensors import layer_tensors
from bitbrush.network.layers import HIGH_PRECISION_ACTIVATION_BITS, LayerSpec, QuantizedLayer, layer_specs
from bitbrush.network.low_rank import branch_, branch_ranks, rank_of
from bitbrush.network.unet import UNET
from bitbrush.numerics.affine import QParams
from bitbrush.numerics.limits import WeightRange
from bitbrush.numerics.weights import round_to_nearest, weight_qparams
from bitbrush.timeline.schedule import ActivationSchedule
from cpu.models import TIMESTEPS, source
from cpu.subjects import Task, bound

RELAXED = TIMESTEPS[len(TIMESTEPS) * 4 // 5 :]
RELAXED_BITS = 10
_WIDENING = 0.4


@dataclass(frozen=True)
class Form:
    """Of an artifact: the bits of its weights, and the rank of branches beside its layers."""

    weight_bits: int
    rank: int = 0

    def __str__(self) -> str:
        return f"w{self.weight_bits}a8" + (f"-rank{self.rank}" if self.rank else "")


def artifact(task: Task, form: Form) -> Path:
    """The folder, for ``UNet2DConditionModel.from_pretrained`` after ``bitbrush.register()``; made on first use.

    Holds the bfloat16 denoiser while it replaces its layers one by one by their integers.
    """
    folder = task.folder(str(form))
    if (folder / WEIGHTS).exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    denoiser = UNet2DConditionModel.from_pretrained(
        source(task.model, torch.bfloat16, task.scratch), torch_dtype=torch.bfloat16
    )
    _branch_(denoiser, form)
    specs = layer_specs(denoiser, UNET, weight_bits=form.weight_bits)
    with _watching(denoiser, specs) as ranges:
        bound(denoiser, task, torch.bfloat16, torch.channels_last)(task.inputs.latents, float(TIMESTEPS[0]))
    tensors: dict[str, Tensor] = {}
    for spec in specs:
        tensors |= layer_tensors(_quantized(denoiser.get_submodule(spec.name), spec, *ranges[spec.name]))
    tensors |= {name: tensor.float() for name, tensor in denoiser.state_dict().items()}
    bits = {spec.name: spec.weight_bits for spec in specs}
    _write_config(denoiser, StoredConfig(bits, low_ranks=branch_ranks(denoiser)), folder)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def _branch_(denoiser: nn.Module, form: Form) -> None:
    """Small random factors beside every layer, whose own weight the residual keeps."""
    layers = [
        spec.name for spec in layer_specs(denoiser, UNET, weight_bits=form.weight_bits) if not spec.high_precision
    ]
    whole = {name: denoiser.get_submodule(name) for name in layers}
    ranks = {name: rank_of(layer, form.rank) for name, layer in whole.items()}
    branch_(denoiser, ranks if form.rank else {})
    for name in branch_ranks(denoiser):
        branched = denoiser.get_submodule(name)
        branched.residual.weight = whole[name].weight
        for part in (branched.down, branched.up):
            part.weight = nn.Parameter(0.02 * torch.randn(part.weight.shape, dtype=torch.bfloat16), requires_grad=False)


@contextmanager
def _watching(denoiser: nn.Module, specs: tuple[LayerSpec, ...]) -> Iterator[dict[str, tuple[float, float]]]:
    """Fills in the smallest and largest input of every layer."""
    ranges: dict[str, tuple[float, float]] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            ranges[name] = (float(args[0].min()), float(args[0].max()))

        return denoiser.get_submodule(name).register_forward_pre_hook(hook)

    handles = [watch(spec.name) for spec in specs]
    try:
        yield ranges
    finally:
        for handle in handles:
            handle.remove()


def _quantized(layer: nn.Module, spec: LayerSpec, low: float, high: float) -> QuantizedLayer:
    """The layer's integers; ``layer`` itself is emptied, so that its weights aren't held twice."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    weight = layer.weight.detach().float()
    bias = None if layer.bias is None else layer.bias.detach().float()
    layer.weight = layer.bias = None  # type: ignore[assignment]
    all_qparams = {float(t): _grid(step, spec, low, high) for step, t in enumerate(TIMESTEPS)}
    rounded = round_to_nearest(weight, weight_qparams(weight, spec.weight_bits, WeightRange.MIN_MAX))
    return QuantizedLayer(spec.name, rounded, bias, ActivationSchedule.of(all_qparams))


def _grid(step: int, spec: LayerSpec, low: float, high: float) -> QParams:
    relaxed = TIMESTEPS[step] in RELAXED
    bits = HIGH_PRECISION_ACTIVATION_BITS if spec.high_precision else RELAXED_BITS if relaxed else 8
    wider = 1 + _WIDENING * step / len(TIMESTEPS)
    return QParams.from_range(low * wider, high * wider**2, bits)


def _write_config(denoiser: Any, packed: StoredConfig, folder: Path) -> None:
    denoiser.save_config(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["quantization_config"] = packed.to_dict()
    path.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
