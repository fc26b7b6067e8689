"""Answering a denoiser's calls on the device: moved, computed and given back without waiting, by recorded graphs."""

import inspect
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils import _pytree as pytree

from bitbrush.runtime.arguments import EXACT_ARGUMENTS
from bitbrush.runtime.cuda.joined import AtOnce
from bitbrush.runtime.cuda.layers import IntegerLayer
from bitbrush.runtime.cuda.steps import Steps
from bitbrush.runtime.snapshot import Snapshot

_LOG = logging.getLogger(__name__)

Replay: TypeAlias = Callable[[], Any]
Recorder: TypeAlias = Callable[[Callable[[], Any]], Replay]
"""From what computes on tensors that stay where they are, to what does the same again on their new values.

The replay's result lies where the last one lay.
"""

GRAPHS_KEPT = 4
"""Kinds of calls: a pipeline has one or two, another resolution or batch size another."""


class GraphWarning(UserWarning):
    """A denoiser cannot be recorded as a CUDA graph: its calls are launched kernel by kernel, which takes longer."""


@dataclass(frozen=True)
class _Call:
    """Arguments by name, flattened: ``values`` has the class Tensor where ``tensors`` has the next one."""

    spec: pytree.TreeSpec
    values: tuple[Any, ...]
    tensors: tuple[Tensor, ...]

    @classmethod
    def of(cls, arguments: dict[str, Any], device: torch.device) -> "_Call":
        leaves, spec = pytree.tree_flatten(arguments)
        tensors = tuple(x.to(device, non_blocking=True) for x in leaves if isinstance(x, Tensor))
        return cls(spec, tuple(Tensor if isinstance(x, Tensor) else x for x in leaves), tensors)

    @property
    def kind(self) -> tuple[Any, ...]:
        """What one recorded graph is good for."""
        return self.spec, self.values, tuple((x.shape, x.dtype) for x in self.tensors)

    def arguments(self, tensors: Sequence[Tensor]) -> dict[str, Any]:
        left = iter(tensors)
        leaves = [next(left) if value is Tensor else value for value in self.values]
        result: dict[str, Any] = pytree.tree_unflatten(leaves, self.spec)
        return result


@dataclass(frozen=True)
class _Recorded:
    kind: tuple[Any, ...]
    inputs: tuple[Tensor, ...]
    replay: Replay


class Engine:
    """``record`` None: every call is launched kernel by kernel. ``dtype``: of everything between the products.

    Arguments are cast to it, but for EXACT_ARGUMENTS; answers have the dtype and the device of the first argument.
    Integers know no NaN: where an argument is not finite, all of the answer is NaN, as in floating point. The first
    call of a kind shows that it runs, the second is recorded, and all later ones are replays of that. While any module
    differs from what it was, by a hook for example, every call is launched kernel by kernel.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        steps: Steps,
        dtype: torch.dtype,
        record: Recorder | None,
        at_once: Sequence[AtOnce] = (),
    ) -> None:
        self._forward: Callable[..., Any] = denoiser.forward
        self._names = list(inspect.signature(denoiser.forward).parameters)
        self._steps, self._dtype, self._record, self._at_once = steps, dtype, record, at_once
        self._seen: list[tuple[Any, ...]] = []
        self._graphs: list[_Recorded] = []  # the latest used last
        self._snapshot = Snapshot(denoiser, own=(IntegerLayer,))
        self._parameters = list(denoiser.parameters())
        self._places = self._current_places()
        self._told = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the denoiser's own forward."""
        arguments = {**dict(zip(self._names, args, strict=False)), **kwargs}
        sample = next(x for x in pytree.tree_leaves(arguments) if isinstance(x, Tensor) and x.is_floating_point())
        timestep = arguments["timestep"]
        if not isinstance(timestep, Tensor):
            arguments["timestep"] = torch.tensor(timestep, device=self._steps.device)
        if self._record is None or torch.compiler.is_compiling() or not self._may_replay():
            call = _Call.of(arguments, self._steps.device)
            return _as(sample, self._answer(call.arguments(call.tensors)))
        return _as(sample, self._by_graph(_Call.of(arguments, self._steps.device)))

    def forget(self) -> None:
        """Gives back the memory of all recorded graphs; the next call of a kind is launched kernel by kernel again."""
        self._seen, self._graphs = [], []

    def _may_replay(self) -> bool:
        """Whether a graph computes what a call would: it runs no Python, and reads parameters where they lay."""
        if (places := self._current_places()) != self._places:
            self._places = places
            self.forget()
        if _has_any_global_hook():
            return False
        unchanged = self._snapshot.holds()
        if not unchanged and not self._told:
            self._told = True
            change = self._snapshot.change()
            _LOG.warning("%s was changed: calls are launched kernel by kernel, which takes longer", change)
        return unchanged

    def _current_places(self) -> list[int]:
        return [parameter.data_ptr() for parameter in self._parameters]

    def _answer(self, arguments: dict[str, Any]) -> Any:
        """On the device, never waiting for it."""
        self._steps.set(arguments["timestep"])
        floating = [x for x in pytree.tree_leaves(arguments) if isinstance(x, Tensor) and x.is_floating_point()]
        finite = torch.stack([x.isfinite().all() for x in floating]).all()
        try:
            output = self._forward(**pytree.tree_map_with_path(self._cast, arguments))
        finally:
            for one in self._at_once:
                one.forget()
        return pytree.tree_map_only(Tensor, lambda x: torch.where(finite, x, torch.nan), output)

    def _cast(self, path: tuple[Any, ...], value: Any) -> Any:
        exact = any(getattr(key, "key", None) in EXACT_ARGUMENTS for key in path)
        return (
            value if exact or not isinstance(value, Tensor) or not value.is_floating_point() else value.to(self._dtype)
        )

    def _by_graph(self, call: _Call) -> Any:
        recorded = next((one for one in self._graphs if one.kind == call.kind), None)
        if recorded is None and call.kind in self._seen:
            recorded = self._recorded(call)
        if recorded is None:
            self._seen = [*self._seen[1 - GRAPHS_KEPT :], call.kind]
            return self._answer(call.arguments(call.tensors))
        self._graphs = [*(one for one in self._graphs if one is not recorded), recorded][-GRAPHS_KEPT:]
        for place, value in zip(recorded.inputs, call.tensors, strict=True):
            place.copy_(value)
        return pytree.tree_map_only(Tensor, torch.clone, recorded.replay())

    def _recorded(self, call: _Call) -> _Recorded | None:
        assert self._record is not None
        inputs = tuple(x.clone() for x in call.tensors)
        arguments = call.arguments(inputs)
        try:
            return _Recorded(call.kind, inputs, self._record(lambda: self._answer(arguments)))
        except RuntimeError as error:
            self._record = None
            warnings.warn(
                f"the denoiser's calls are launched kernel by kernel, for they cannot be recorded as a graph: {error}",
                GraphWarning,
                stacklevel=6,
            )
            return None


def _as(sample: Tensor, output: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda x: x.to(sample.device, sample.dtype), output)


def record_cuda_graph(run: Callable[[], Any]) -> Replay:
    """A :data:`Recorder`: what ``run`` launches, as one CUDA graph. Runs it once before, beside the current stream."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()

    def replay() -> Any:
        graph.replay()
        return output

    return replay
