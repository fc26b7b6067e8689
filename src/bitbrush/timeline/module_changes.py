"""Changes that a pipeline's call makes to the modules of its denoiser.

Some pipelines exchange attention processors, register hooks or switch blocks during a call: perturbed attention
guidance, self-attention guidance, GLIGEN. A suspended call takes its changes back, so that neither the user's network
nor other calls see them. Its own denoiser calls run with them.
"""

import operator
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

ABSENT = object()
"""The value of an attribute that does not exist."""


class Location(NamedTuple):
    """Location of a value: an attribute of a module, or the entry ``key`` of an attribute that is a dictionary."""

    module: str
    attribute: str
    key: Any = ABSENT


@dataclass(frozen=True)
class ModuleChanges:
    """Changed values by location; a module comes before its children."""

    values: Mapping[Location, Any] = field(default_factory=dict)

    @contextmanager
    def made_to(self, network: nn.Module) -> Iterator[None]:
        """Applies the changes to ``network`` while entered; any network with modules of the same names works."""
        earlier = _exchange(network, self.values)
        try:
            yield
        finally:
            _exchange(network, earlier)


NO_CHANGES = ModuleChanges()


class ChangeTracker:
    """Tracker of the changes made to ``network``, from creation or :meth:`resume` to :meth:`pause`."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._before = _attributes(network)

    def pause(self) -> ModuleChanges:
        """Reverts the tracked changes and returns them."""
        changed = dict(_changed(self._before))
        ours = {place: value for place, (_, value) in changed.items()}
        _exchange(self._network, {place: earlier for place, (earlier, _) in changed.items()})
        return ModuleChanges(ours)

    def resume(self, changes: ModuleChanges) -> None:
        """Applies the changes again; changes by others since :meth:`pause` do not count as this tracker's."""
        self._before = _attributes(self._network)
        _exchange(self._network, changes.values)


class _Attributes(NamedTuple):
    """Attributes of a module, with copies of those that are dictionaries: torch's hooks, parameters and children."""

    module: nn.Module
    values: dict[str, Any]
    entries: dict[str, dict[Any, Any]]


def _attributes(network: nn.Module) -> dict[str, _Attributes]:
    return {name: _attributes_of(module) for name, module in network.named_modules()}


def _attributes_of(module: nn.Module) -> _Attributes:
    values = dict(vars(module))
    entries = {key: dict(value) for key, value in values.items() if type(value) in (dict, OrderedDict)}
    return _Attributes(module, values, entries)


def _changed(before: Mapping[str, _Attributes]) -> Iterator[tuple[Location, tuple[Any, Any]]]:
    """Yields changed locations with their earlier and present values."""
    for name, (module, values, entries) in before.items():
        for attribute, change in _unlike(values, vars(module)):
            yield Location(name, attribute), change
        for attribute, earlier in entries.items():
            if vars(module).get(attribute) is values[attribute]:
                for key, change in _unlike(earlier, values[attribute]):
                    yield Location(name, attribute, key), change


def _unlike(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> Iterator[tuple[Any, tuple[Any, Any]]]:
    if len(old) == len(new) and all(map(operator.is_, old.values(), new.values())):
        return  # the common case; comparing whole sequences is much faster than key by key
    for key in {**old, **new}:
        change = (old.get(key, ABSENT), new.get(key, ABSENT))
        if change[0] is not change[1]:
            yield key, change


def _exchange(network: nn.Module, values: Mapping[Location, Any]) -> dict[Location, Any]:
    """Sets the values and returns the previous ones; ABSENT removes."""
    earlier: dict[Location, Any] = {}
    for place, value in values.items():
        holder = vars(network.get_submodule(place.module))
        key = place.attribute
        if place.key is not ABSENT:
            holder, key = holder[place.attribute], place.key
        earlier[place] = holder.get(key, ABSENT)
        if value is ABSENT:
            holder.pop(key, None)
        else:
            holder[key] = value
    return earlier
