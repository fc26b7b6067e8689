"""The ``forward`` of fused blocks, which is the module's own wherever users would notice a difference."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from bitbrush.network.compiling import not_compiled
from bitbrush.runtime.snapshot import Snapshot

_LOG = logging.getLogger(__name__)


class ChangeLog:
    """Whether the log says already that a block of a denoiser was changed."""

    already = False


class FusedForward:
    """Computes a module in one go, or by its own ``forward`` where its modules were changed or hooks are global.

    Args:
        name: The module's, in the denoiser.
        module: Whose ``forward`` this is.
        block: Computes in one go. It returns NotImplemented for a call that it was not made for.
        snapshot: The module as ``block`` was made for it.
        told: Shared by all blocks of a denoiser: a change is logged once.
    """

    def __init__(
        self, name: str, module: nn.Module, block: Callable[..., Any], snapshot: Snapshot, changes: ChangeLog
    ) -> None:
        functools.update_wrapper(self, module.forward)
        self._name, self._module, self._block = name, module, block
        self._snapshot, self._told = snapshot, changes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _may_fuse(self):
            result = self._block(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return type(self._module).forward(self._module, *args, **kwargs)

    def may_fuse(self) -> bool:
        """Whether nobody would notice that the modules of the block are not called."""
        if _has_any_global_hook():
            return False
        if self._snapshot.holds():
            return True
        if not self._told.already:
            self._told.already = True
            _LOG.warning(
                "%s in %s was changed: changed blocks call their modules one by one, which takes longer",
                self._snapshot.change(),
                self._name,
            )
        return False


class UntracedForward(FusedForward):
    """The same where what computes in one go is nothing that torch.compile can trace."""

    @not_compiled
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _may_fuse(fused: FusedForward) -> bool:
    """:meth:`FusedForward.may_fuse`. torch.compile asks when it traces, and never again, as it does for any hook."""
    return fused.may_fuse()
