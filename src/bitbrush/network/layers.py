"""Selection of the layers that are quantized, and their bits."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from bitbrush.network.family import Family
from bitbrush.network.first_token import FirstToken
from bitbrush.network.low_rank import branch_layers, branch_ranks, factor_bits
from bitbrush.network.skip_inputs import split_begins
from bitbrush.numerics.weights import QuantizedWeight
from bitbrush.timeline.schedule import Activations, ActivationSchedule

HIGH_PRECISION_WEIGHT_BITS = 8
HIGH_PRECISION_ACTIVATION_BITS = 16
"""Activation bits of the layers next to the latents, at every step.

Near x0 the predicted noise is ``(x - x0) / sigma`` with a small sigma. That magnifies what quantization adds to x on
its direct path through the network. On emoji-sd at W8A8, 10-bit inputs of conv_in caused 20 to 40 % of the error of a
step. 8-bit inputs of the last shortcut caused 30 to 50 % of the rest.
"""


@dataclass(frozen=True)
class LayerSpec:
    """Conv2d or Linear of the denoiser, with its treatment.

    ``excluded`` is the reason why the layer stays in floating point, None for a quantized layer. ``high_precision``
    layers have 8-bit weights and 16-bit activations at every step; they are next to the latents, or selected by
    pattern. ``factor`` marks a factor of a low-rank branch; it is also ``high_precision``, except for its weight bits.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    weight_bits: int
    high_precision: bool = False
    excluded: str | None = None
    factor: bool = False


@dataclass(frozen=True)
class QuantizedLayer:
    """Everything that a runtime needs to execute one layer in integers, except its geometry.

    ``bias`` (C_out,) float32 or None replaces the layer's own, because rounding may have corrected it. ``first`` is a
    token that the layer does not quantize, or None.
    """

    name: str
    weight: QuantizedWeight
    bias: Tensor | None
    activations: Activations
    first: FirstToken | None = None

    @property
    def schedule(self) -> ActivationSchedule:
        """Schedule of the activations, for callers that know that there is one."""
        assert isinstance(self.activations, ActivationSchedule), f"ranges of {self.name} are found at run time"
        return self.activations


def layer_specs(
    denoiser: nn.Module,
    family: Family,
    *,
    weight_bits: int,
    exclude: Sequence[str] = (),
    high_precision: Sequence[str] = (),
) -> tuple[LayerSpec, ...]:
    """Lists every Conv2d and Linear of ``denoiser``, in module order.

    In patterns ``*`` matches anything. Patterns also match the original name of a split or branched layer.

    Args:
        denoiser: Network to quantize.
        family: Its architecture.
        weight_bits: Bits of ordinary weights.
        exclude: Patterns of layers that stay in floating point.
        high_precision: Patterns of layers that are treated like those next to the latents.

    Raises:
        ValueError: A pattern matches no layer, no layer is left, or a weight contains NaN or infinity.
    """
    layers = {name: m for name, m in denoiser.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    named = (*layers, *split_begins(denoiser), *branch_ranks(denoiser))
    factors = branch_layers(denoiser)
    for key, patterns in {"exclude": exclude, "high_precision": high_precision}.items():
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in named):
                raise ValueError(f"{key} pattern {pattern!r} matches none of the {len(layers)} layers")
    high_precision_names = {
        *family.high_precision_layers(denoiser),
        *(n for n in named if any(fnmatchcase(n, pattern) for pattern in high_precision)),
    }
    specs = [_spec(name, layer, high_precision_names, weight_bits, exclude) for name, layer in layers.items()]
    if all(spec.excluded is not None for spec in specs):
        raise ValueError(
            f"exclude is {', '.join(map(repr, exclude)) or 'empty'}, and none of the {len(layers)} layers is left to "
            "quantize; exclude fewer"
        )
    return tuple(_as_factor(spec, weight_bits) if spec.name in factors else spec for spec in specs)


def _spec(
    name: str,
    layer: nn.Conv2d | nn.Linear,
    high_precision_names: Collection[str],
    weight_bits: int,
    exclude: Sequence[str],
) -> LayerSpec:
    weight = layer.weight
    bad = int((~torch.isfinite(weight)).sum())
    if bad:
        raise ValueError(
            f"{bad} of {weight.numel()} weights of layer {name} are NaN or infinite; "
            "the checkpoint is damaged, or was cast to a type too narrow for it"
        )
    high_precision = any(f"{name}.".startswith(f"{parent}.") for parent in high_precision_names)  # or a part of one
    reason = next((f"recipe: exclude {p}" for p in exclude if fnmatchcase(name, p)), None)
    return LayerSpec(
        name=name,
        kind="conv" if isinstance(layer, nn.Conv2d) else "linear",
        shape=tuple(weight.shape),
        weight_bits=HIGH_PRECISION_WEIGHT_BITS if high_precision else weight_bits,
        high_precision=high_precision,
        excluded=reason,
    )


def _as_factor(spec: LayerSpec, weight_bits: int) -> LayerSpec:
    return replace(spec, high_precision=True, factor=True, weight_bits=factor_bits(weight_bits))


def set_weight(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Sets the values of a Conv2d or Linear, same shape, in the layer's own dtype and on its device.

    A layer on the meta device takes the tensors as they are. So does the weight of a layer that has no weight
    parameter.
    """
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    parameter = layer._parameters["weight"]
    if parameter is not None and parameter.is_meta:
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        return
    if parameter is None:
        layer.weight = nn.Parameter(weight, requires_grad=False)
    else:
        parameter.data = weight.to(parameter)
    if layer.bias is not None and bias is not None:
        layer.bias.data = bias.to(layer.bias)
