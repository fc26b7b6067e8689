"""The executor itself: what becomes of a denoiser, and which of its graphs answers a call."""

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bitbrush.network.first_token import answer_first_token
from bitbrush.network.layers import QuantizedLayer
from bitbrush.runtime.integers import needs_schedule, obstacle, signed_bytes
from bitbrush.runtime.interface import Execution
from bitbrush.runtime.openvino.graph import Call, Graph, Traced, compile_graph
from bitbrush.runtime.openvino.layers import DynamicLayer, FloatLayer, Form, IntegerLayer, OpenVinoLayer, Step
from bitbrush.runtime.openvino.package import load_openvino, require_exact_products
from bitbrush.timeline.clock import timestep_reader
from bitbrush.timeline.schedule import DynamicRanges

_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}
KERNEL = "u8 x s8, int32 sums (OpenVINO)"
GRAPHS_KEPT = 2
"""One for the steps of ordinary activations and one for relaxed steps; each holds all weights."""


class FloatingPointWarning(UserWarning):
    """OpenVINO computes layers in floating point that were to be computed in integers."""


@dataclass(frozen=True)
class OpenVinoRuntime:
    """``dtype``: of everything between the integer products, float32 or bfloat16.

    A denoiser's graph is compiled at its first call, and again for inputs of other shapes and for steps of other
    activation bits. Raises RuntimeUnavailable if the package openvino is missing or inexact on this processor.
    """

    dtype: torch.dtype = torch.bfloat16

    name = "openvino"

    def __post_init__(self) -> None:
        if self.dtype not in _HINTS:
            raise ValueError(f"dtype is {self.dtype}; the openvino runtime computes in float32 or bfloat16")
        require_exact_products(load_openvino())

    @property
    def description(self) -> str:
        return f"OpenVINO {load_openvino().__version__} u8 x s8, {_HINTS[self.dtype]} between the products"

    def execution(self, original: nn.Module, layer: QuantizedLayer) -> Execution:
        """What the layer is exported as, which :meth:`lower`'s graph may still find OpenVINO to change."""
        return _execution(layer.name, _obstacle(original, layer, signed_bytes(layer.weight)))

    def lower(self, denoiser: nn.Module, layers: Iterable[QuantizedLayer]) -> tuple[Execution, ...]:
        """What each layer is exported as. FloatingPointWarning at a later call tells of what became another."""
        step = Step()
        placed = [_place(denoiser, layer, index, step) for index, layer in enumerate(layers)]
        engine = Engine(denoiser, [layer for layer, _ in placed], step, self.dtype)
        denoiser.forward = functools.wraps(denoiser.forward)(engine)
        return tuple(execution for _, execution in placed)


class Engine:
    """Answers the calls of a denoiser by graphs, which it compiles as they are needed."""

    def __init__(self, denoiser: nn.Module, layers: list[OpenVinoLayer], step: Step, dtype: torch.dtype) -> None:
        self._denoiser, self._layers, self._step, self._dtype = denoiser, layers, step, dtype
        self._forward: Callable[..., Any] = denoiser.forward
        self._expected = inspect.signature(denoiser.forward)
        self._timestep_of = timestep_reader(denoiser)
        self._graphs: list[Graph] = []  # the latest used last
        self._told: set[str] = set()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the denoiser's own forward, in the type of its first floating-point argument."""
        timestep = self._timestep_of(args, kwargs)
        arguments = self._expected.bind(*args, **kwargs).arguments
        dtype = next(x.dtype for x in pytree.tree_leaves(arguments) if isinstance(x, Tensor) and x.is_floating_point())
        call = Call.of({**arguments, "timestep": torch.tensor(timestep)})
        grids = [layer.schedule.at(timestep) for layer in self._layers]
        forms = tuple(layer.form(grid.bits) for layer, grid in zip(self._layers, grids, strict=True))
        rows = [form.row(grid) for form, grid in zip(forms, grids, strict=True)]
        result = self._graph(forms, call).run(rows, call)
        return pytree.tree_map(lambda x: x.to(dtype), result)

    def _graph(self, forms: tuple[Form, ...], call: Call) -> Graph:
        graph = next((g for g in self._graphs if g.forms == forms and g.signature == call.signature), None)
        if graph is None:
            del self._graphs[: len(self._graphs) - (GRAPHS_KEPT - 1)]  # before the next one takes memory
            graph = self._compile(forms, call)
        else:
            self._graphs.remove(graph)
        self._graphs.append(graph)
        return graph

    def _compile(self, forms: tuple[Form, ...], call: Call) -> Graph:
        self._step.forms = forms
        config = {
            "INFERENCE_PRECISION_HINT": _HINTS[self._dtype],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
        }
        traced = Traced(self._denoiser, self._forward, self._step, call)
        graph = compile_graph(load_openvino(), traced, forms, call, config)
        self._step.rows = ()
        self._tell(graph.floating)
        return graph

    def _tell(self, floating: Iterable[str]) -> None:
        news = sorted(set(floating) - self._told)
        if news:
            self._told.update(news)
            message = f"OpenVINO computes {len(news)} quantized layers in floating point: {', '.join(news)}"
            warnings.warn(message, FloatingPointWarning, stacklevel=5)


def _place(denoiser: nn.Module, layer: QuantizedLayer, index: int, step: Step) -> tuple[OpenVinoLayer, Execution]:
    """Puts the layer to be exported where the original stands."""
    original = denoiser.get_submodule(layer.name)
    assert isinstance(original, nn.Conv2d | nn.Linear)
    signed = signed_bytes(layer.weight)
    execution = _execution(layer.name, _obstacle(original, layer, signed))
    made: OpenVinoLayer
    if execution.fallback is None and signed is not None:
        made = IntegerLayer(original, layer, signed, index=index, step=step)
    elif isinstance(layer.activations, DynamicRanges):
        made = DynamicLayer(original, layer, layer.activations.bits, index=index, step=step)
    else:
        made = FloatLayer(original, layer, index=index, step=step)
    parent, _, own = layer.name.rpartition(".")
    setattr(denoiser.get_submodule(parent), own, made)
    if layer.first is not None:
        answer_first_token(made, layer.first)
    return made, execution


def _execution(name: str, reason: str | None) -> Execution:
    return Execution(name, KERNEL) if reason is None else Execution(name, "fake-quantized (OpenVINO)", reason)


def _obstacle(original: nn.Module, layer: QuantizedLayer, signed: Tensor | None) -> str | None:
    if isinstance(original, nn.Conv2d) and isinstance(original.padding, str):
        return f"padding {original.padding!r}; integer convolutions pad by numbers"
    return needs_schedule(layer) or obstacle(original, layer.weight, signed)
