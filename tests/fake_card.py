"""A card that is none: tensors that say they are on one, refuse to meet the processor's, and compute all the same."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing

CARD = torch.device("cuda", 0)
_MIXED = {"copy_", "_to_copy", "linalg_cholesky_ex"}
"""What may be given tensors of both: copies, and what makes a result of its own in C++."""


class OnCard(Tensor):
    """Wraps a tensor of the processor."""

    inner: Tensor
    away = False

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnCard":
        made: OnCard = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            requires_grad=inner.requires_grad,
        )
        made.inner = inner
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cpu") if self.away else CARD

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, values: Tensor) -> None:
        """Of either: a card's tensor can be given the processor's memory, and is the processor's then."""
        self.away = not isinstance(values, OnCard) or values.away
        self.inner = values.inner if isinstance(values, OnCard) else values

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def __repr__(self, **_: Any) -> str:
        return f"OnCard({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == CARD:
            kwargs["device"] = torch.device("cpu")
        name = func.overloadpacket.__name__
        by_index = name in ("index", "index_put_", "index_put")  # a card takes indices from the processor
        given = (args[0], *args[2:]) if by_index else (args, kwargs)
        here = [isinstance(x, OnCard) and not x.away for x in _tensors(given) if x.dim() > 0]
        if not all(here) and any(here) and name not in _MIXED:
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, but one is the processor's")
        result = func(*_unwrapped(args), **_unwrapped(kwargs))
        if here and not any(here) and name not in _MIXED:
            return result
        wrapped = _mapped(Tensor, OnCard, result)
        return return_and_correct_aliasing(func, args, kwargs, wrapped) if _aliases(func) else wrapped


@cache
def _aliases(func: Any) -> bool:
    return any(one.alias_info for one in (*func._schema.returns, *func._schema.arguments))


def _unwrapped(values: Any) -> Any:
    return _mapped(OnCard, lambda x: x.inner, values)


def _mapped(kind: type, change: Callable[[Any], Any], value: Any) -> Any:
    """As torch's tree_map_only, which is many times slower and would be half of what a test takes."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, tuple | list):
        return type(value)([_mapped(kind, change, one) for one in value])
    if isinstance(value, dict):
        return {key: _mapped(kind, change, one) for key, one in value.items()}
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _tensors(one)


def _is_card(value: Any) -> bool:
    return value == CARD or (isinstance(value, str | torch.device) and torch.device(value).type == "cuda")


class _Moves(TorchFunctionMode):
    """What is asked for on the card is made there, what is asked for elsewhere leaves it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        match getattr(func, "__name__", ""):
            case "to":
                return _moved(args, kwargs)
            case "cpu":
                return _moved((args[0], "cpu"), {})
            case "cuda":
                return _moved((args[0], CARD), {})
            case "new_tensor" if isinstance(args[0], OnCard):
                return _carded(func(args[0].inner, *args[1:], **kwargs))
            case "tolist" if isinstance(args[0], OnCard):
                return args[0].inner.tolist()
            case "untyped_storage" if isinstance(args[0], OnCard):
                return args[0].inner.untyped_storage()
            case "set_" if isinstance(args[0], OnCard):
                return OnCard(args[0].inner.set_(*args[1:], **kwargs))
            case "numpy" | "data_ptr" if isinstance(args[0], OnCard):
                raise TypeError(f"can't ask a tensor on the card for {func.__name__}; copy it to the processor first")
        if _is_card(kwargs.get("device")):
            if kwargs.get("generator") is not None:
                raise RuntimeError("expected a generator of the card")
            return _carded(func(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)


def _moved(args: Any, kwargs: Any) -> Any:
    x, *rest = args
    places = [y for y in (*rest, kwargs.pop("device", None)) if isinstance(y, str | torch.device)]
    others = [y.device for y in rest if isinstance(y, Tensor)]
    dtypes = [y for y in (*rest, kwargs.pop("dtype", None)) if isinstance(y, torch.dtype)]
    dtypes += [y.dtype for y in rest if isinstance(y, Tensor)]
    kwargs = {name: value for name, value in kwargs.items() if name in ("copy", "memory_format") and value}
    y = Tensor.to(x, dtypes[0] if dtypes else x.dtype, **kwargs) if dtypes or kwargs else x
    if not (places or others):
        return y
    if _is_card((places or others)[0]):
        return _carded(y)
    return _back(y) if isinstance(y, OnCard) and not y.away else y


def _carded(x: Any) -> Any:
    if not isinstance(x, Tensor) or (isinstance(x, OnCard) and not x.away):
        return x
    inner = x.inner if isinstance(x, OnCard) else x
    return OnCard(inner.detach().clone()).requires_grad_(x.requires_grad)


def _back(x: OnCard) -> Tensor:
    return x.detach().inner.clone()


@contextmanager
def fake_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """While entered, in all threads."""
    run = threading.Thread.run

    def run_in_mode(self: threading.Thread) -> None:
        with _Moves():
            run(self)

    monkeypatch.setattr(threading.Thread, "run", run_in_mode)
    monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
    with _Moves():
        yield CARD
