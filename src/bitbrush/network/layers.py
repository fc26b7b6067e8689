"""Which layers of a denoiser are quantized, and with how many bits."""

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
"""Of the layers next to the latents, at every step.

Near x0 the noise to be predicted is ``(x - x0) / sigma`` with a small sigma, which magnifies what quantization adds to
x on its straight way through the network. On emoji-sd at W8A8, 10-bit inputs of conv_in made 20 to 40 % of the error
of a step, and 8-bit inputs of the last shortcut 30 to 50 % of what was left.
"""


@dataclass(frozen=True)
class LayerSpec:
    """A Conv2d or Linear of the denoiser and what is to be done with it.

    ``excluded`` says why the layer stays in floating point; None for a quantized layer. ``high_precision``: with 8-bit
    weights and 16-bit activations at every step, being next to the latents, or one that is to be ``high_precision``.
    ``factor``: of a low-rank branch; ``high_precision``, too, but for its weight bits.
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
    """All that a runtime needs to execute one layer in integers, apart from its geometry.

    ``bias`` (C_out,) float32 or None replaces the layer's own: rounding may have corrected it. ``first``: the
    token that it is not to quantize, None for none.
    """

    name: str
    weight: QuantizedWeight
    bias: Tensor | None
    activations: Activations
    first: FirstToken | None = None

    @property
    def schedule(self) -> ActivationSchedule:
        """Of the activations, for who knows that they have one."""
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
    """Every Conv2d and Linear of ``denoiser``, in module order.

    ``exclude`` and ``high_precision`` hold patterns of layer names (``*`` matches anything): of those that stay in
    floating point, and of those that are treated as the edge layers are. Raises ValueError if one matches no layer, or
    if a weight holds NaN or infinity. What a layer became, the halves of a split convolution or the parts of a branched
    layer, is what it was, and is treated as ``high_precision`` by its name, too.
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
    specs = (_spec(name, layer, high_precision_names, weight_bits, exclude) for name, layer in layers.items())
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
    high_precision = any(f"{name}.".startswith(f"{one}.") for one in high_precision_names)  # or a half of one
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
    """Gives a Conv2d or Linear new values of the same shape, in its own dtype and on its own device.

    A layer without values (on the device meta) takes them as they are, one that held its weight elsewhere the weight.
    """
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    own = layer._parameters["weight"]
    if own is not None and own.is_meta:
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        return
    if own is None:
        layer.weight = nn.Parameter(weight, requires_grad=False)
    else:
        own.data = weight.to(own)
    if layer.bias is not None and bias is not None:
        layer.bias.data = bias.to(layer.bias)
