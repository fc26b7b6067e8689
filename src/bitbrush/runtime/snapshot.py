"""Detection of changes to modules below a ``forward`` that a runtime replaced.

Users set attention processors, register hooks, override ``forward``, replace children and swap classes at any time.
torch does not record such changes, so a snapshot is compared before each call: identities only, in C loops.
"""

from collections.abc import Callable, Collection, Iterator
from itertools import chain, repeat
from operator import is_
from typing import Any

from torch import nn

from bitbrush.runtime.wrappers import wrappers_in

_INTERNAL = frozenset(vars(nn.Module())) - {"training"}
"""Attributes that torch keeps in every module; hooks, children and parameters are compared by content."""
_PROCESSOR = "processor"
_VALUES = bool, int, float, str


class Snapshot:
    """Classes, hooks, children, parameters and attributes of modules at one moment.

    Args:
        root: Module whose ``forward`` was replaced. Its hooks, ``forward`` and new attributes are not compared: hooks
            have run before the runtime sees a call, and frameworks add attributes.
        own: Classes whose parameters and attributes are not compared, because the runtime reads them at each call. A
            parameter that is set to None, or no longer None, is a change.
        leaves: Modules below ``root`` that are compared by identity only, because they are called.
    """

    def __init__(
        self, root: nn.Module, own: tuple[type[nn.Module], ...] = (), leaves: Collection[nn.Module] = ()
    ) -> None:
        self._root, self._own = root, own
        self._inner = dict(_below(root, leaves))
        modules = [root, *self._inner.values()]
        self._modules = modules
        self._hooks = [hooks for one in self._inner.values() for hooks in (one._forward_hooks, one._forward_pre_hooks)]
        others = [module for module in modules if not isinstance(module, own)]
        self._members: list[dict[str, Any]] = [
            held for one in others for held in (one._modules, one._parameters) if held
        ]
        self._read = [module._parameters for module in modules if isinstance(module, own)]
        attributes = [(module, key) for module in modules for key in self._attributes(module)]
        self._owners = [module for module, _ in attributes]
        self._keys = [key for _, key in attributes]
        self._processors = [index for index, key in enumerate(self._keys) if key == _PROCESSOR]
        processors = {type(vars(module)[key]): "__call__" for module, key in attributes if key == _PROCESSOR}
        code = {type(module): "forward" for module in modules} | processors
        self._classes, self._functions = list(code), list(code.values())
        self._dicts: tuple[list[dict[str, Any]], list[dict[str, Any]]] | None = None
        self._then = {name: self._state(module) for name, module in self._named()}
        self._last = self._identities(), True

    def __getstate__(self) -> dict[str, Any]:
        """Drops the references to each ``__dict__``: copied modules have others, which do not exist yet."""
        return {**vars(self), "_dicts": None}

    def holds(self) -> bool:
        """Whether the modules are unchanged, or were changed back."""
        identities = self._identities()
        last, held = self._last
        if len(identities) != len(last) or not all(map(is_, identities, last)):
            held = self.change() is None
            self._last = identities, held
        return held

    def change(self) -> str | None:
        """Names one thing that changed; None if nothing did."""
        for name, module in self._named():
            now, then = self._state(module), self._then[name]
            for key in then if module is self._root else {**then, **now}:
                if key not in now or key not in then or not _alike(key, now[key], then[key]):
                    return f"{name}.{key}".lstrip(".")
        return None

    def _identities(self) -> list[Any]:
        """Lists all compared objects; a new attribute of a module changes the length."""
        if self._dicts is None:
            self._dicts = list(map(vars, self._inner.values())), list(map(vars, self._owners))
        inner, owners = self._dicts
        attributes = list(map(dict.get, owners, self._keys))
        return [
            *map(len, inner),
            *map(type, self._modules),
            *map(type, map(attributes.__getitem__, self._processors)),
            *map(getattr, self._classes, self._functions),
            *chain.from_iterable(self._hooks),
            *chain.from_iterable(map(dict.values, self._members)),
            *map(is_, chain.from_iterable(map(dict.values, self._read)), repeat(None)),
            *attributes,
        ]

    def _state(self, module: nn.Module) -> dict[str, Any]:
        """Maps names to the compared objects of one module."""
        kind = type(module)
        state = {"class": kind, "forward of its class": kind.forward}
        if isinstance(module, self._own):
            state |= {key: parameter is None for key, parameter in module._parameters.items()}
        else:
            state |= {**module._modules, **module._parameters}
        state |= {key: vars(module)[key] for key in self._attributes(module)}
        if _PROCESSOR in vars(module):
            processor_class = type(vars(module)[_PROCESSOR])
            state |= {"processor's class": processor_class, "processor's call": processor_class.__call__}
        if module is not self._root:
            state |= {f"forward hook {key}": hook for key, hook in module._forward_hooks.items()}
            state |= {f"forward pre-hook {key}": hook for key, hook in module._forward_pre_hooks.items()}
        return state

    def _attributes(self, module: nn.Module) -> list[str]:
        """Lists compared attributes; for classes in ``own``, only a ``forward`` set on the instance."""
        keys = ["forward"] if isinstance(module, self._own) else [key for key in vars(module) if key not in _INTERNAL]
        return [key for key in keys if key != "forward" or (module is not self._root and _overrides_forward(module))]

    def _named(self) -> Iterator[tuple[str, nn.Module]]:
        yield "", self._root
        yield from self._inner.items()


class Baseline:
    """State in which a replaced ``forward`` computes what the modules would: as lowered, or with adapters since.

    Args:
        root: See :class:`Snapshot`.
        own: See :class:`Snapshot`.
        leaves: See :class:`Snapshot`.
        accepts: Whether the ``forward`` regards such a wrapper of PEFT.
    """

    def __init__(
        self,
        root: nn.Module,
        own: tuple[type[nn.Module], ...] = (),
        leaves: Collection[nn.Module] = (),
        accepts: Callable[[nn.Module], bool] = lambda _: True,
    ) -> None:
        self._root, self._own, self._leaves, self._accepts = root, own, leaves, accepts
        self._lowered = Snapshot(root, own, leaves)
        self._adapted: Snapshot | None = None
        self.wrappers: tuple[nn.Module, ...] = ()

    def holds(self) -> bool:
        """Whether the modules are in either state."""
        return self._lowered.holds() or (self._adapted is not None and self._adapted.holds())

    def change(self) -> str | None:
        """Names one thing that changed; None if nothing did."""
        return (self._adapted or self._lowered).change()

    def readapt(self, *, held: bool) -> None:
        """Accepts the present adapters, unless the modules had been changed otherwise before.

        Args:
            held: What :meth:`holds` returned before adapters were attached or removed.
        """
        self.wrappers = wrappers_in(self._root)
        accepted = held and self.wrappers and all(map(self._accepts, self.wrappers))
        own = (*self._own, *{type(wrapper) for wrapper in self.wrappers})
        self._adapted = Snapshot(self._root, own, self._leaves) if accepted else None


def _below(root: nn.Module, leaves: Collection[nn.Module], prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in root.named_children():
        if child not in leaves:
            yield f"{prefix}{name}", child
            yield from _below(child, leaves, f"{prefix}{name}.")


def _overrides_forward(module: nn.Module) -> bool:
    """Whether ``forward`` on the instance differs from the class's; removed hooks leave an equal one behind."""
    forward = vars(module).get("forward")
    return forward is not None and getattr(forward, "__func__", None) is not type(module).forward


def _alike(key: str, now: Any, then: Any) -> bool:
    """Whether an attribute is equivalent: identical, an equal number or name, or a processor without state."""
    if now is then:
        return True
    if type(now) is not type(then):
        return False
    if isinstance(now, _VALUES):
        return bool(now == then)
    return key == _PROCESSOR and not vars(now) and not vars(then)
