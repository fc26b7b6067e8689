"""Many denoiser calls advanced together from block to block.

Reconstructing a block needs its input in the quantized network so far and its output in the full-precision one, for
every calibration sample. Here each recorded denoiser call is suspended at each block, so both networks see every
sample exactly once for all blocks together, nothing but the live activations is kept (on disk, where there is an
offload folder), and no forward pass of any architecture is copied.
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
    """The arguments with which the block ``name`` is called."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def rows(self) -> int:
        """Samples in the batch: the first dimension of the first tensor."""
        return next(value.shape[0] for value in (*self.args, *self.kwargs.values()) if isinstance(value, Tensor))

    def run(self, network: nn.Module) -> Any:
        args, kwargs = on(device_of(network), (self.args, self.kwargs))
        return network.get_submodule(self.name)(*args, **kwargs)


def on(device: torch.device, values: Values) -> Values:
    """The values, in any nesting, tensors on the device: copies where they wait elsewhere."""
    if all(x.device == device for x in tree_iter(values) if isinstance(x, Tensor)):
        return values
    moved: Values = tree_map_only(Tensor, lambda x: x.to(device), values)
    return moved


BlockRunner: TypeAlias = Suspension[BlockCall, Any, Any]
"""A denoiser or block call; its result is the call's output."""


def reconstruction_blocks(denoiser: nn.Module, family: Family, layers: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The blocks that hold the given layers, with the layers of each; a layer outside all blocks is its own block."""
    classes = family.block_classes
    blocks = [name for name, module in denoiser.named_modules() if isinstance(module, classes)]
    held: dict[str, tuple[str, ...]] = {}
    for layer in layers:
        block = next((name for name in blocks if layer.startswith(name + ".")), layer)
        held[block] = (*held.get(block, ()), layer)
    return held


def next_block(
    runners: Sequence[BlockRunner], order: Sequence[str], ranks: Ranks = ALONE
) -> tuple[str, list[int]] | None:
    """The first in ``order`` of the blocks that walks wait at, and which of them do; None when all have ended.

    Walks take different ways where a call skips blocks, as guidance by skipped layers does. The walks of all processes
    count: it may be that none of this one's waits there.
    """
    stops = {index: order.index(runner.request.name) for index, runner in enumerate(runners) if runner.request}
    first = int(ranks.least(torch.tensor(min(stops.values(), default=len(order)))))
    if first == len(order):
        return None
    return order[first], [index for index, stop in stops.items() if stop == first]


def called(runner: BlockRunner) -> BlockCall:
    """The block call a walk waits with."""
    assert runner.request is not None
    return runner.request


def as_rows(output: Any) -> Tensor:
    """A block's output as one tensor; that of a block with several (joint attention) as (N, everything)."""
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
    """Each call of ``network`` up to its first block; answer with the block's output to go on to the next.

    Walks nest: a block call can in turn be walked through layer by layer. What a call holds while it waits, and its
    result, are put away by ``offload``.
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
        # Only suspended threads hand out; whoever answers runs the block itself.
        return original(*args, **kwargs) if handler is None else handler(BlockCall(name, args, kwargs))

    return forward


def _restore(module: nn.Module, forward: Callable[..., Any] | None) -> None:
    """Puts back the ``forward`` that an outer walk had set on the module, or leaves it to its class."""
    if forward is None:
        del module.__dict__["forward"]
    else:
        module.forward = forward


def _block_runner(
    network: nn.Module, call: DenoiserCall | BlockCall, handlers: threading.local, offload: Offload
) -> BlockRunner:
    def function(hand_out: Callable[[BlockCall], Any]) -> Any:
        held = TensorTracker(offload, device_of(network))

        def wait_with(block: BlockCall) -> Any:
            held.put()
            output = hand_out(block)
            held.follow(output)
            held.bring_back(output)
            return output

        handlers.hand_out = wait_with
        with torch.no_grad(), held:  # gradients are recorded per thread, and this is a new one
            held.follow((call.args, call.kwargs))
            held.bring_back((call.args, call.kwargs))
            result = call.run(network)
        held.put()
        return result

    return Suspension(function)


@dataclass(frozen=True)
class Rows:
    """Tensors of a row per sample, one after the other along the first dimension; only rows asked for are copied.

    ``device``: where to.
    """

    parts: tuple[Tensor, ...]
    device: torch.device = CPU

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        if isinstance(rows, slice):
            rows = torch.arange(len(self))[rows]
        taken = self.parts[0].new_empty(len(rows), *self.parts[0].shape[1:])
        begin = 0
        for part in self.parts:
            here = (rows >= begin) & (rows < begin + len(part))
            taken[here] = part[rows[here] - begin]
            release(part)
            begin += len(part)
        return taken.to(self.device)


@dataclass(frozen=True)
class BlockInputs:
    """The inputs of one block from many calls, row by row.

    Anything but a tensor with a row per sample is taken to be the same in all of them: switches, or the rotary
    embedding of the positions.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: int

    @classmethod
    def of(cls, calls: Sequence[BlockCall], device: torch.device = CPU) -> "BlockInputs":
        """``device``: where the block computes."""
        rows = [call.rows for call in calls]

        def join(values: Sequence[Any]) -> Any:
            by_row = all(_has_rows(value, own) for value, own in zip(values, rows, strict=True))
            return Rows(tuple(values), device) if by_row else on(device, values[0])

        args = tuple(join(values) for values in zip(*(call.args for call in calls), strict=True))
        kwargs = {key: join([call.kwargs[key] for call in calls]) for key in calls[0].kwargs}
        return cls(calls[0].name, args, kwargs, sum(rows))

    def take(self, rows: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def pick(value: Any) -> Any:
            return value[rows] if isinstance(value, Rows) else value

        return tuple(pick(value) for value in self.args), {key: pick(value) for key, value in self.kwargs.items()}

    @property
    def row_bytes(self) -> int:
        """Of one sample."""
        parts = [value.parts[0] for value in (*self.args, *self.kwargs.values()) if isinstance(value, Rows)]
        return sum(part.nbytes // len(part) for part in parts)


def _has_rows(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == rows
