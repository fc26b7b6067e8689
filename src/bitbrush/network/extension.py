"""Modules that gain methods and stay what they are, for ``isinstance`` and by the name of their class."""

from functools import cache
from typing import Any

from torch import nn


class Extension:
    """Base of classes whose methods precede those of a module's own class; see :func:`extend_`."""

    def __reduce_ex__(self, _: Any) -> tuple[Any, ...]:
        """Supports copies and pickles: the joint class is created on demand, so pickle cannot find it by name."""
        return _empty, _parts(type(self)), self.__dict__.copy()


def extend_(module: nn.Module, extension: Any) -> None:
    """Adds the methods of ``extension`` to ``module``, in place; an extended module stays as it is."""
    if not isinstance(module, extension):
        kind: Any = type(module)
        object.__setattr__(module, "__class__", _joint(extension, kind))


@cache
def _joint(extension: Any, kind: Any) -> Any:
    """Creates one class for each pair, with the name of ``kind``."""
    return type(kind.__name__, (extension, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})


def _parts(joint: Any) -> tuple[Any, ...]:
    """Lists the extensions of a joint class, the last added first, and the module's own class."""
    extension, kind = joint.__bases__
    return (extension, *_parts(kind)) if issubclass(kind, Extension) else (extension, kind)


def _empty(*parts: Any) -> Any:
    *extensions, kind = parts
    for extension in reversed(extensions):
        kind = _joint(extension, kind)
    return kind.__new__(kind)
