"""Sequential block forward: many denoiser calls, suspended at each block and advanced together.

Reconstructing a block needs its input in the partly quantized network and its output in the full-precision network, for
every calibration sample. Each recorded denoiser call is suspended at each block, so that both networks process every
sample exactly once for all blocks. Only live activations are stored (on disk, if there is an offload folder). No
forward pass of any architecture is reimplemented.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter, tree_map_only

from bitbrush.network.family import Family
from bitbrush.network.lazy_weights import device_of
from bitbrush.session.offload import (
    CPU,
    IN_MEMORY,
    Offload,
    TensorTracker,
    Values,
    release,
)
from bitbrush.session.ranks import ALONE, Ranks
from bitbrush.timeline.suspension import Suspension
from bitbrush.timeline.trajectory import DenoiserCall


@dataclass(frozen=True)
class BlockCall:
    """Arguments of a call of the block ``name``."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def rows(self) -> int:
        """Samples in the batch: the first dimension of the first tensor."""
        return next(value.shape[0] for value in (*self.args, *self.kwargs.values()) if isinstance(value, Tensor))

    def run(self, network: nn.Module) -> Any:
        """Runs the block of ``network`` on the network's device."""
        args, kwargs = on(device_of(network), (self.args, self.kwargs))
        return network.get_submodule(self.name)(*args, **kwargs)


def on(device: torch.device, values: Values) -> Values:
    """Moves tensors in any nesting to the device; offloaded tensors elsewhere are copied."""
    if all(x.device == device for x in tree_iter(values) if isinstance(x, Tensor)):
        return values
    moved: Values = tree_map_only(Tensor, lambda x: x.to(device), values)
    return moved


BlockRunner: TypeAlias = Suspension[BlockCall, Any, Any]
"""Denoiser or block call, suspended at each inner block; its result is the call's output."""


def reconstruction_blocks(denoiser: nn.Module, family: Family, layers: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Groups layers by the block that contains them; a layer outside all blocks is its own block.

    Args:
        denoiser: Denoiser with the layers.
        family: Its architecture.
        layers: Layer names.

    Returns:
        Layer names by block name.
    """
    blocks = family.blocks(denoiser)
    groups: dict[str, tuple[str, ...]] = {}
    for layer in layers:
        block = next((name for name in blocks if layer.startswith(name + ".")), layer)
        groups[block] = (*groups.get(block, ()), layer)
    return groups


def next_block(
    runners: Sequence[BlockRunner], order: Sequence[str], ranks: Ranks = ALONE
) -> tuple[str, list[int]] | None:
    """Finds the first block in ``order`` at which block runners are suspended, over all processes.

    Runners take different paths if a call skips blocks, as skip-layer guidance does. A process may have no runner
    suspended at the block.

    Args:
        runners: Block runners of this process.
        order: Block names in order of execution.
        ranks: Processes.

    Returns:
        Block name and the indices of the runners suspended there; None after all runners have ended.
    """
    stops = {index: order.index(runner.request.name) for index, runner in enumerate(runners) if runner.request}
    first = int(ranks.least(torch.tensor(min(stops.values(), default=len(order)))))
    if first == len(order):
        return None
    return order[first], [index for index, stop in stops.items() if stop == first]


def called(runner: BlockRunner) -> BlockCall:
    """Returns the block call at which a runner is suspended."""
    assert runner.request is not None
    return runner.request


def as_rows(output: Any) -> Tensor:
    """Converts a block's output to one tensor; several outputs (joint attention) are flattened and joined to (N, K)."""
    if isinstance(output, Tensor):
        return output
    return torch.cat([part.flatten(1) for part in output if isinstance(part, Tensor)], 1)


@contextmanager
def block_runners(
    network: nn.Module,
    blocks: Sequence[str],
    calls: Sequence[DenoiserCall] | Sequence[BlockCall],
    offload: Offload = IN_MEMORY,
) -> Iterator[list[BlockRunner]]:
    """Runs each call of ``network`` to its first block; answering with the block's output runs it to the next block.

    Block runners nest: a block call can itself run layer by layer. ``offload`` stores the tensors of suspended calls
    and their results.

    Args:
        network: Denoiser or enclosing module.
        blocks: Names of the blocks at which calls are suspended.
        calls: Denoiser or block calls.
        offload: Storage of the tensors of suspended calls.

    Yields:
        One block runner per call.
    """
    handlers = threading.local()
    originals = {name: network.get_submodule(name).forward for name in blocks}
    with ExitStack() as stack:
        for name, original in originals.items():
            module = network.get_submodule(name)
            stack.callback(_restore, module, module.__dict__.get("forward"))
            module.forward = _handing_out(name, original, handlers)
        yield [stack.enter_context(_block_runner(network, call, handlers, offload)) for call in calls]


def _handing_out(name: str, original: Callable[..., Any], handlers: threading.local) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        handler = getattr(handlers, "hand_out", None)
        # Only suspended threads intercept the call; the answering thread runs the block itself.
        return original(*args, **kwargs) if handler is None else handler(BlockCall(name, args, kwargs))

    return forward


def _restore(module: nn.Module, forward: Callable[..., Any] | None) -> None:
    """Restores the ``forward`` that an outer block runner set on the module, or that of its class."""
    if forward is None:
        del module.__dict__["forward"]
    else:
        module.forward = forward


def _block_runner(
    network: nn.Module, call: DenoiserCall | BlockCall, handlers: threading.local, offload: Offload
) -> BlockRunner:
    def function(hand_out: Callable[[BlockCall], Any]) -> Any:
        tracker = TensorTracker(offload, device_of(network))

        def wait_with(block: BlockCall) -> Any:
            tracker.put()
            output = hand_out(block)
            tracker.follow(output)
            tracker.bring_back(output)
            return output

        handlers.hand_out = wait_with
        with torch.no_grad(), tracker:  # grad mode is per thread, and this thread is new
            tracker.follow((call.args, call.kwargs))
            tracker.bring_back((call.args, call.kwargs))
            result = call.run(network)
        tracker.put()
        return result

    return Suspension(function)


@dataclass(frozen=True)
class Rows:
    """Tensors with one row per sample, concatenated along the first dimension; indexing copies only the selected rows.

    Texts of different lengths give parts of different shapes. Rows that are selected together must have one shape.

    Args:
        parts: Tensors, (rows, ...).
        device: Device of the copies.
    """

    parts: tuple[Tensor, ...]
    device: torch.device = CPU

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        if isinstance(rows, slice):
            rows = torch.arange(len(self))[rows]
        copies: Tensor | None = None
        begin = 0
        for part in self.parts:
            here = (rows >= begin) & (rows < begin + len(part))
            begin += len(part)
            if bool(here.any()):
                copies = part.new_empty(len(rows), *part.shape[1:]) if copies is None else copies
                copies[here] = part[rows[here] - (begin - len(part))]
                release(part)
        if copies is None:
            copies = self.parts[0].new_empty(0, *self.parts[0].shape[1:])
        return copies.to(self.device)

    @property
    def row_bytes(self) -> int:
        """Bytes of the largest row."""
        return max(part.nbytes // max(1, len(part)) for part in self.parts)


@dataclass(frozen=True)
class BlockInputs:
    """Inputs of one block from many calls, row by row.

    Values other than tensors with a row per sample are assumed equal in all calls of one kind: flags, or rotary
    position embeddings. Calls are of one kind if all their tensors have the same shapes, except for the number of rows.

    Args:
        name: Name of the block.
        args: Arguments: ``Rows``, or a list with the value of each call.
        kwargs: Keyword arguments, alike.
        call_of: Index of the call of each row, (rows,), int64.
        kind_of: Kind of each call, (calls,), int64.
        device: Device of the block.
    """

    name: str
    args: tuple[Rows | list[Any], ...]
    kwargs: dict[str, Rows | list[Any]]
    call_of: Tensor
    kind_of: Tensor
    device: torch.device = CPU

    @classmethod
    def of(cls, calls: Sequence[BlockCall], device: torch.device = CPU) -> "BlockInputs":
        """Joins the inputs of several calls; ``device`` is the device of the block."""
        rows = [call.rows for call in calls]

        def join(values: Sequence[Any]) -> Rows | list[Any]:
            by_row = all(_has_rows(value, count) for value, count in zip(values, rows, strict=True))
            return Rows(tuple(values), device) if by_row else list(values)

        args = tuple(join(values) for values in zip(*(call.args for call in calls), strict=True))
        kwargs = {key: join([call.kwargs[key] for call in calls]) for key in calls[0].kwargs}
        kinds: dict[Any, int] = {}
        kind_of = [kinds.setdefault(_kind(call), len(kinds)) for call in calls]
        call_of = torch.arange(len(calls)).repeat_interleave(torch.tensor(rows))
        return cls(calls[0].name, args, kwargs, call_of, torch.tensor(kind_of), device)

    @property
    def rows(self) -> int:
        """Number of samples."""
        return len(self.call_of)

    def of_one_kind(self, rows: Tensor) -> list[Tensor]:
        """Splits rows by the kind of their calls; one part if all texts have the same length."""
        kinds = self.kind_of[self.call_of[rows]]
        return [rows[kinds == kind] for kind in kinds.unique()]

    def take(self, rows: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns arguments and keyword arguments with the selected rows, all of one kind."""
        call = int(self.call_of[rows[0]])

        def pick(value: Rows | list[Any]) -> Any:
            return value[rows] if isinstance(value, Rows) else on(self.device, value[call])

        return tuple(pick(value) for value in self.args), {key: pick(value) for key, value in self.kwargs.items()}

    @property
    def row_bytes(self) -> int:
        """Bytes of the largest sample."""
        return sum(value.row_bytes for value in (*self.args, *self.kwargs.values()) if isinstance(value, Rows))


def _has_rows(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == rows


def _kind(call: BlockCall) -> tuple[tuple[int, ...], ...]:
    """Returns the shapes of all tensors of a call, without the number of its rows."""
    tensors = (value for value in tree_iter((call.args, call.kwargs)) if isinstance(value, Tensor))
    return tuple(tuple(x.shape[1:] if _has_rows(x, call.rows) else x.shape) for x in tensors)
