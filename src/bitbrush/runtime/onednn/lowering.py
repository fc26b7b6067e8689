"""Replacement of a denoiser's layers and blocks by integer layers and fused blocks."""

import functools
import logging
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bitbrush.network import fusions
from bitbrush.network.first_token import answer_first_token
from bitbrush.network.layers import QuantizedLayer, set_weight
from bitbrush.runtime.arguments import floating_tensors
from bitbrush.runtime.consumers import (
    FusionBackend,
    OneByOne,
    Reading,
    consumer_of,
    project_time,
)
from bitbrush.runtime.emulation import emulate, fake_quantizer_of
from bitbrush.runtime.fused import fuse
from bitbrush.runtime.fused_forward import UntracedForward
from bitbrush.runtime.integer_weight import BiasState
from bitbrush.runtime.integers import column_sums, obstacle, signed_bytes
from bitbrush.runtime.interface import Execution
from bitbrush.runtime.memo import Copies, Remembered
from bitbrush.runtime.nibbles import NIBBLE
from bitbrush.runtime.onednn.dynamic import DynamicLayer, as_product
from bitbrush.runtime.onednn.layers import (
    IntegerConv2d,
    IntegerLayer,
    IntegerLinear,
    IntegerPointwiseConv2d,
    is_pointwise,
    pack_conv,
    pack_linear,
)
from bitbrush.runtime.onednn.opaque import is_accessible
from bitbrush.runtime.onednn.weights import (
    ExpandedWeights,
    Memory,
    NibbleWeights,
    Pack,
    PlainNibbleWeights,
    Weights,
)
from bitbrush.runtime.onednn.workspace import Workspace
from bitbrush.runtime.tools import Tools
from bitbrush.timeline.schedule import ActivationSchedule, DynamicRanges
from bitbrush.timeline.tracker import TRACKER

KERNEL = "u8 x s8, int32 sums (oneDNN)"
_LOG = logging.getLogger(__name__)
EMULATION = "fake-quantized float32"
TEXTS = 2
"""Texts, or quantization parameters of one text, whose keys and values are cached: plain steps and relaxed ones."""


@dataclass(frozen=True)
class Lowering:
    """Lowering of one denoiser; ``dtype`` is that of everything between the integer products."""

    denoiser: nn.Module
    tools: Tools
    dtype: torch.dtype
    memory: Memory
    emulated: list[nn.Module] = field(default_factory=list)
    laid_out_anew: list[str] = field(default_factory=list)
    workspace: Workspace = field(default_factory=Workspace)

    def place(self, layer: QuantizedLayer) -> Execution:
        """Replaces the float layer by an integer layer, or emulates it and reports why."""
        executed = self._place(layer)
        if layer.first is not None:
            answer_first_token(self.denoiser.get_submodule(layer.name), layer.first)
        return executed

    def _place(self, layer: QuantizedLayer) -> Execution:
        original = self.denoiser.get_submodule(layer.name)
        assert isinstance(original, nn.Conv2d | nn.Linear)
        signed = signed_bytes(layer.weight)
        executed = execution(original, layer, signed)
        if executed.fallback is not None or signed is None:
            self._place_reference(layer, original)
            return executed
        pack = _pack(original, layer)
        packed, sums = pack(signed), column_sums(signed).double().float()
        del signed  # large layers: what follows holds the weights once more
        rest = layer, sums, self._weights(layer, original, packed, pack), self.tools.fused_ops
        made: nn.Module
        match layer.activations:
            case ActivationSchedule():
                made = _integer_layer(original, *rest)
            case DynamicRanges(bits):
                product = _integer_layer(original, as_product(layer, bits), *rest[1:])
                made = DynamicLayer(original, layer, sums, product)
        parent, _, own = layer.name.rpartition(".")
        setattr(self.denoiser.get_submodule(parent), own, made)
        return executed

    def _weights(self, layer: QuantizedLayer, original: nn.Conv2d | nn.Linear, packed: Tensor, pack: Pack) -> Weights:
        if self.memory is Memory.EXPANDED or layer.weight.qparams.bits > NIBBLE:
            return ExpandedWeights(packed)
        if is_accessible(pack_linear):
            shape = len(layer.weight.w_q), getattr(original, "groups", 1)
            if stored := NibbleWeights.of(packed, *shape, self.workspace, self.tools.expand):
                return stored
        self.laid_out_anew.append(layer.name)
        return PlainNibbleWeights(layer.weight, pack, self.tools.expand)

    def name_slow_layers(self) -> None:
        """Logs once which layers lay out their weights at every call."""
        if self.laid_out_anew:
            _LOG.warning(
                "memory is low: the 4-bit weights of %d layers, %s the first, are laid out at every call, which takes "
                "several times longer; the layout that torch %s packs them in is unknown on this processor",
                *(len(self.laid_out_anew), self.laid_out_anew[0], torch.__version__),
            )

    def _place_reference(self, layer: QuantizedLayer, original: nn.Conv2d | nn.Linear) -> None:
        set_weight(original, layer.weight.dequantize(), layer.bias)
        emulate(original, fake_quantizer_of(original, layer.activations), self.dtype)
        self.emulated.append(original)

    def convert_rest(self) -> None:
        """Casts all other parameters to ``dtype``, except emulated layers and norms.

        Norms take float32 parameters with any input.
        """
        for module in self.denoiser.modules():
            if (
                not isinstance(module, nn.GroupNorm | nn.LayerNorm | IntegerLayer | DynamicLayer)
                and module not in self.emulated
            ):
                for name, parameter in module.named_parameters(recurse=False):
                    setattr(module, name, nn.Parameter(parameter.to(self.dtype), requires_grad=False))

    def fuse(self, described: Iterable[fusions.Fusion]) -> None:
        """Fuses the described blocks whose layers are all integer layers."""
        of_text = partial(_of_text, Copies(entries=TEXTS))
        between = FusionBackend(
            self.tools.fused_ops, self.tools.attention, OneByOne, of_text, _of_time, UntracedForward
        )
        fuse(self.denoiser, described, IntegerLayer, between)


def _of_time(layer: nn.Module) -> Reading:
    """Caches a time projection: its result repeats in every generation unless the text contributes to it."""
    return Remembered(partial(project_time, layer), partial(_timestep_and_biases, layer), entries=128)


def _timestep_and_biases(layer: nn.Module) -> Hashable:
    return TRACKER.timestep, _biases(layer)


def _of_text(copies: Copies, layer: nn.Module) -> Reading:
    """Caches a layer of the text: its result changes only with the text and the quantization parameters."""
    return Remembered(layer, partial(_qparams_and_biases, layer), entries=TEXTS, copies=copies)


def _qparams_and_biases(layer: nn.Module) -> Hashable:
    return consumer_of(layer).qparams, _biases(layer)


def _biases(layer: nn.Module) -> Hashable:
    parts: Iterable[Any] = consumer_of(layer).parts
    return tuple(BiasState.of(part.bias) for part in parts)


def _pack(original: nn.Conv2d | nn.Linear, layer: QuantizedLayer) -> Pack:
    if isinstance(original, nn.Conv2d) and not is_pointwise(original):
        return partial(pack_conv, original, layer.weight.qparams.scale)
    return pack_linear


def _integer_layer(original: nn.Conv2d | nn.Linear, *args: Any) -> IntegerLayer:
    match original:
        case nn.Linear():
            return IntegerLinear(original, *args)
        case _ if is_pointwise(original):
            return IntegerPointwiseConv2d(original, *args)
        case _:
            return IntegerConv2d(original, *args)


def execution(original: nn.Module, layer: QuantizedLayer, signed: Tensor | None) -> Execution:
    """Names the kernel for a layer with these signed weights, and the reason if it is no integer kernel."""
    reason = _reason(original, layer, signed)
    return Execution(layer.name, KERNEL) if reason is None else Execution(layer.name, EMULATION, reason)


def _reason(original: nn.Module, layer: QuantizedLayer, signed: Tensor | None) -> str | None:
    """Explains why a layer cannot be multiplied in integers; None if it can."""
    if isinstance(original, nn.Conv2d) and (isinstance(original.padding, str) or len(set(original.padding)) > 1):
        return f"padding {original.padding}; integer convolutions pad all sides alike"
    return obstacle(original, signed)


class NonFiniteForward:
    """Denoiser ``forward`` that returns NaN if an argument is not finite.

    Integers have no NaN; in floating point, one would spread over the whole output.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        functools.update_wrapper(self, denoiser.forward, updated=())
        self._denoiser = denoiser

    def __call__(self, **arguments: Any) -> Any:
        """Takes the denoiser's arguments by name."""
        finite = all(bool(x.isfinite().all()) for x in floating_tensors(arguments))
        output = type(self._denoiser).forward(self._denoiser, **arguments)
        return output if finite else pytree.tree_map_only(Tensor, lambda y: torch.full_like(y, torch.nan), output)
