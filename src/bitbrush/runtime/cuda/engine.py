"""Denoiser calls on the GPU: arguments are copied, computed and returned without synchronization, by CUDA graphs."""

import functools
import logging
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils import _pytree as pytree

from bitbrush.runtime.arguments import answer_like, by_name, cast, floating_tensors, require_no_gradient, sample_of
from bitbrush.runtime.cuda.joined import AtOnce
from bitbrush.runtime.cuda.layers import IntegerLayer
from bitbrush.runtime.cuda.steps import Steps
from bitbrush.runtime.cuda.turns import Turns
from bitbrush.runtime.snapshot import Baseline
from bitbrush.runtime.wrappers import state_of
from bitbrush.timeline.tracker import ONLY_STEP, argument_names, takes_time, time_argument

_LOG = logging.getLogger(__name__)

Replay: TypeAlias = Callable[[], Any]
Recorder: TypeAlias = Callable[[Callable[[], Any]], Replay]
"""Turns a computation on tensors at fixed addresses into a replay on their new values.

The result of the replay has the address of the recorded result.
"""

GRAPHS_KEPT = 4
"""Number of recorded kinds of calls: a pipeline has one or two, another resolution or batch size adds one."""


class GraphWarning(UserWarning):
    """Warning: a denoiser cannot be recorded as a CUDA graph; launching its kernels one by one is slower."""


@dataclass(frozen=True)
class _Call:
    """Flattened arguments by name; ``values`` has the class Tensor in place of each tensor of ``tensors``."""

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
        """Key of the calls that one recorded graph can compute."""
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
    """Denoiser ``forward`` on the device, with CUDA graphs.

    Arguments are cast to ``dtype``, except EXACT_ARGUMENTS. Outputs have the dtype and device of the first argument.
    Integers have no NaN: if an argument is not finite, the whole output is NaN, as in floating point.

    The first call of a kind is a trial run, the second is recorded, and all later ones replay the graph. While any
    module differs from its initial state, for example by a hook, kernels are launched one by one.

    Args:
        denoiser: Lowered denoiser.
        steps: Buffers of the quantization parameters of the current step.
        dtype: Dtype of everything between the products.
        record: Records a graph; None: kernels are always launched one by one.
        at_once: Joined layers whose cached outputs end with a call.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        steps: Steps,
        dtype: torch.dtype,
        record: Recorder | None,
        at_once: Sequence[AtOnce] = (),
    ) -> None:
        functools.update_wrapper(self, denoiser.forward, updated=())
        self._denoiser = denoiser
        self._names = argument_names(denoiser)
        self._time = time_argument(denoiser) if takes_time(denoiser) else None
        self._steps, self._dtype, self._record, self._at_once = steps, dtype, record, at_once
        self._turns = Turns(steps.device)
        self._seen: list[tuple[Any, ...]] = []
        self._graphs: list[_Recorded] = []  # the most recently used is last
        self.baseline = Baseline(denoiser, own=(IntegerLayer,))
        self._wrappers, self._parameters = self.baseline.wrappers, list(denoiser.parameters())
        self._places = self._current_places()
        self._told = False
        self._only_step = torch.tensor(ONLY_STEP, device=steps.device)

    def __getstate__(self) -> dict[str, Any]:
        """Drops graphs from copies, which record their own."""
        return {**vars(self), "_seen": [], "_graphs": []}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Takes the arguments of the denoiser's own forward; threads take turns."""
        arguments = by_name(self._names, args, kwargs)
        require_no_gradient(arguments)
        sample = sample_of(self._names, arguments)
        timestep = self._only_step if self._time is None else arguments[self._time]
        if self._time is not None and not isinstance(timestep, Tensor):
            dtype = torch.float32 if isinstance(timestep, float) else torch.int64
            arguments[self._time] = torch.tensor(timestep, dtype=dtype, device=self._steps.device)
        call = _Call.of(arguments, self._steps.device)
        if torch.compiler.is_compiling():
            return answer_like(sample, self._answer(call.arguments(call.tensors)))
        with self._turns:
            output = self._computed(call)
        return answer_like(sample, output)

    def _computed(self, call: _Call) -> Any:
        if self._record is None or not self._may_replay():
            return self._answer(call.arguments(call.tensors))
        return self._by_graph(call)

    def forget(self) -> None:
        """Frees the memory of all recorded graphs; the next call of a kind is a trial run again."""
        self._seen, self._graphs = [], []

    def _may_replay(self) -> bool:
        """Whether a replay equals a call: a graph runs no Python, and reads parameters at their recorded addresses."""
        if (places := self._current_places()) != self._places:
            self._places = places
            self.forget()
        if _has_any_global_hook():
            return False
        unchanged = self.baseline.holds()
        if not unchanged and not self._told:
            self._told = True
            change = self.baseline.change()
            _LOG.warning("%s was changed: calls are launched kernel by kernel, which takes longer", change)
        return unchanged

    def _current_places(self) -> list[Hashable]:
        """Lists what a graph has recorded of parameters and adapters."""
        if self._wrappers is not self.baseline.wrappers:
            self._wrappers, self._parameters = self.baseline.wrappers, list(self._denoiser.parameters())
        return [*(one.data_ptr() for one in self._parameters), *map(state_of, self._wrappers)]

    def _answer(self, arguments: dict[str, Any]) -> Any:
        """Computes on the device without synchronization."""
        self._steps.set(self._only_step if self._time is None else arguments[self._time])
        finite = torch.stack([x.isfinite().all() for x in floating_tensors(arguments)]).all()
        try:
            output = type(self._denoiser).forward(self._denoiser, **cast(arguments, self._dtype))
        finally:
            self._steps.forget()
            for one in self._at_once:
                one.forget()
        return pytree.tree_map_only(Tensor, lambda x: torch.where(finite, x, torch.nan), output)

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
