"""The ``forward`` of fused blocks, which falls back to the module's own wherever users would notice a difference."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from bitbrush.network.compiling import not_compiled
from bitbrush.runtime.snapshot import Baseline

_LOG = logging.getLogger(__name__)


class ChangeLog:
    """Flag of a denoiser: whether the log already reports a changed block."""

    already = False


class FusedForward:
    """Forward that computes a module as one fused block.

    The module's own ``forward`` runs instead if its modules were changed or global hooks are registered.

    Args:
        name: Name of the module in the denoiser.
        module: Module whose ``forward`` this replaces.
        block: Fused computation. It returns NotImplemented for arguments that it does not support.
        baseline: State of the module in which ``block`` computes what it would.
        changes: Shared by all blocks of a denoiser, so that a change is logged once.
    """

    def __init__(
        self, name: str, module: nn.Module, block: Callable[..., Any], baseline: Baseline, changes: ChangeLog
    ) -> None:
        functools.update_wrapper(self, module.forward)
        self._name, self._module, self._block = name, module, block
        self.baseline, self._changes = baseline, changes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Takes the arguments of the module's own forward."""
        if _may_fuse(self):
            result = self._block(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return type(self._module).forward(self._module, *args, **kwargs)

    def may_fuse(self) -> bool:
        """Whether skipping the calls of the block's modules has no visible effect."""
        if _has_any_global_hook():
            return False
        if self.baseline.holds():
            return True
        if not self._changes.already:
            self._changes.already = True
            _LOG.warning(
                "%s in %s was changed: changed blocks call their modules one by one, which takes longer",
                self.baseline.change(),
                self._name,
            )
        return False


class UntracedForward(FusedForward):
    """Fused forward that torch.compile cannot trace and calls as it is."""

    @not_compiled
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Takes the arguments of the module's own forward."""
        return super().__call__(*args, **kwargs)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _may_fuse(fused: FusedForward) -> bool:
    """Calls :meth:`FusedForward.may_fuse`; torch.compile does so once, while it traces, as for any hook."""
    return fused.may_fuse()
