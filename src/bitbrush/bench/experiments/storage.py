"""Bytes of a network in memory and on disk, counted alike for artifacts and other packages' networks."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from bitbrush.network.narrow import lossless_type

_NO_STORE = (str, bytes, int, float, type, ModuleType, FunctionType, BuiltinFunctionType, torch.dtype, torch.device)


def memory_bytes(network: nn.Module) -> int:
    """Counts the bytes of the tensors that a network's modules hold: parameters, buffers and plain attributes.

    A tensor subclass, as quantization packages have for weights, counts the tensors inside it. Tensors that share
    storage count once.
    """
    return sum(_storages(network).values())


def stored_bytes(network: nn.Module) -> int:
    """Counts the bytes of a network without files of its own: float32 tensors in their narrowest lossless type."""
    return sum(_narrow_bytes(tensor) for tensor in _state(network))


def _state(network: nn.Module) -> Iterator[Tensor]:
    for tensor in network.state_dict(keep_vars=True).values():
        if isinstance(tensor, Tensor):
            yield from inner_tensors(tensor)


def _narrow_bytes(tensor: Tensor) -> int:
    return tensor.numel() * min(lossless_type([tensor]).itemsize, tensor.itemsize)


def inner_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """Yields the plain tensors that a tensor consists of: itself, or those inside a subclass."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from inner_tensors(getattr(tensor, name))
    else:
        yield tensor


def _storages(network: nn.Module) -> dict[int, int]:
    """Returns the bytes of each storage by its address."""
    sizes: dict[int, int] = {}
    for tensor in _reachable(network):
        if tensor.layout != torch.strided:  # oneDNN's own layouts have no address
            sizes[id(tensor)] = tensor.nbytes
        elif tensor.device.type != "meta":
            with suppress(RuntimeError):  # raised for a subclass without data of its own
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sizes


def _reachable(network: nn.Module) -> Iterator[Tensor]:
    """Yields every tensor below the attributes of a network and of the objects that it holds."""
    left: list[Any] = [network]
    seen: set[int] = set()
    while left:
        value = left.pop()
        if id(value) in seen or value is None or isinstance(value, _NO_STORE):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield from inner_tensors(value)
            left.extend(vars(value).values())
        else:
            left.extend(_parts(value))


def _parts(value: Any) -> Iterator[Any]:
    match value:
        case Mapping():
            yield from value.values()
        case list() | tuple() | set() | frozenset():
            yield from value
        case partial():
            yield from (value.func, *value.args, *value.keywords.values())
        case MethodType():
            yield value.__self__
        case _:
            yield from getattr(value, "__dict__", {}).values()
            for kind in type(value).__mro__:
                yield from (getattr(value, name, None) for name in _slots(kind))


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
