"""What one denoiser call launches, moves and multiplies, counted on tensors without memory: no card is needed."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from bitbrush.network.layers import QuantizedLayer
from bitbrush.numerics.weights import QuantizedWeight, WeightQParams
from bitbrush.runtime.cuda.runtime import CudaRuntime
from bitbrush.timeline.schedule import ActivationSchedule
from gpu.denoisers import PLAIN, Case, Shape, activation_qparams, make_denoiser

META = torch.device("meta")
_EDGES = "conv_in", "conv_out"
_ONE_INPUT = ("attn1.to_[qkv]", "attn1.to_qkv"), (".*attn2.to_[kv]", "text"), (".*time_emb_proj", "time")
"""Names of layers that read one input, and what their grids are known by."""
_MOVES_NOTHING = re.compile(
    r"_?(unsafe_)?(view|reshape|permute|transpose|slice|split|t|expand|unsqueeze|squeeze|unbind|alias|detach|select|"
    r"as_strided|empty|lift)(_\w+)?$"
)


@dataclass(frozen=True)
class Launch:
    """An operator's name; bytes that it reads and writes, each once; twice the products that it sums up."""

    name: str
    bytes: int
    operations: int


class Counter(TorchDispatchMode):
    """Notes every operator that a card would launch."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Launch] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        name = operator.name().partition("::")[2].partition(".")[0]
        made = [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]
        if made and not _MOVES_NOTHING.match(name):
            given = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            moved = sum(x.numel() * x.element_size() for x in (*given, *made))
            self.launches.append(Launch(name, moved, _operations(name, args, made[0])))
        return result


def _operations(name: str, args: Any, made: Tensor) -> int:
    match name:
        case "integer_product":
            return 2 * made.numel() * args[2][0].numel()
        case "gated_product":
            return 2 * args[0].numel() * len(args[2])
        case "convolution":
            return 2 * made.numel() * args[1][0].numel()
        case "addmm":
            return 2 * made.numel() * args[1].shape[-1]
        case "mm":
            return 2 * made.numel() * args[0].shape[-1]
        case "attention":
            return 4 * args[0].numel() * args[1].shape[-2]
        case _:
            return 0


@torch.library.custom_op("count::attention", mutates_args=())
def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Stands for torch's fused kernel, of which there is none for tensors without memory."""
    return torch.empty_like(query)


@attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    n, heads, tokens, width = query.shape
    return query.new_empty(n, tokens, heads, width).transpose(1, 2)


@contextmanager
def _one_attention() -> Iterator[None]:
    original = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda q, k, v, **_: attention(q, k, v)  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


def count_half(shape: Shape, case: Case) -> list[Launch]:
    """Of the denoiser as it is, in float16."""
    return _count(make_denoiser(shape, META, torch.float16), shape, case, torch.float16)


def count_ours(shape: Shape, case: Case) -> list[Launch]:
    """Of W8A8 at a step that is not relaxed."""
    denoiser = make_denoiser(shape, META, torch.float32)
    CudaRuntime(META, torch.bfloat16).lower(denoiser, _layers(denoiser))
    return _count(denoiser, shape, case, torch.bfloat16)


def _count(denoiser: nn.Module, shape: Shape, case: Case, dtype: torch.dtype) -> list[Launch]:
    with torch.no_grad(), _one_attention():
        call = case.call(denoiser, shape, dtype, META)
        with Counter() as counter:
            call(PLAIN)
    return counter.launches


def _layers(denoiser: nn.Module) -> Iterator[QuantizedLayer]:
    """Of zeros; layers have the same grids where they read the same input."""
    known: dict[str, int] = {}
    for name, layer in list(denoiser.named_modules()):
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        filters = len(layer.weight)
        qparams = WeightQParams(torch.ones(filters), torch.full((filters,), 128, dtype=torch.uint8), 8)
        weight = QuantizedWeight(torch.full(layer.weight.shape, 128, dtype=torch.uint8), qparams)
        high = 1.0 + known.setdefault(_input(name), len(known))
        schedule = ActivationSchedule.of(dict(activation_qparams(-1.0, high, high_precision=name in _EDGES)))
        yield QuantizedLayer(name, weight, None if layer.bias is None else torch.zeros(filters), schedule)


def _input(name: str) -> str:
    for pattern, known_by in _ONE_INPUT:
        name = re.sub(pattern, known_by, name)
    return name
