"""Modules that users add to a lowered denoiser: IP-Adapters, replaced layers, attention processors with weights."""

from itertools import chain
from typing import Any

import torch
from torch import nn


def adapt_added_modules(denoiser: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Moves and casts modules that are added to the denoiser from now on.

    The cast happens at the next call. Without it, an added module would meet activations of another dtype: the
    parameters of a lowered denoiser do not show which dtype its activations have. A cast of the whole denoiser also
    reaches its other parameters; they get their dtypes back.

    Args:
        denoiser: The lowered denoiser; it gets a forward pre-hook.
        device: Target device of added parameters and buffers.
        dtype: Target dtype of added floating-point parameters and buffers.
    """
    denoiser.register_forward_pre_hook(_AddedModules(denoiser, device, dtype))


class _AddedModules:
    def __init__(self, denoiser: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._learn(denoiser)

    def __call__(self, denoiser: nn.Module, _: tuple[Any, ...]) -> None:
        _look(self, denoiser)

    def look(self, denoiser: nn.Module) -> None:
        if self._current() != self._members:
            for parameter, dtype in self._dtypes:
                parameter.data = parameter.data.to(dtype)
            for module in denoiser.modules():
                if module not in self._known:
                    self._adapt(module)
            self._learn(denoiser)

    def _learn(self, denoiser: nn.Module) -> None:
        self._known = set(denoiser.modules())
        self._children = [module._modules for module in denoiser.modules()]
        self._members = self._current()
        self._dtypes = [(parameter, parameter.dtype) for parameter in denoiser.parameters()]

    def _current(self) -> list[nn.Module | None]:
        return list(chain.from_iterable(map(dict.values, self._children)))

    def _adapt(self, module: nn.Module) -> None:
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            tensor.data = tensor.data.to(self._device, self._dtype if tensor.is_floating_point() else None)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _look(added: _AddedModules, denoiser: nn.Module) -> bool:
    """Looks for added modules; torch.compile does so while it traces."""
    added.look(denoiser)
    return True
