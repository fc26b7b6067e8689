"""Methods by the name that a recipe's ``method`` key uses; each is imported when it is asked for.

A package of others adds one by the entry point group ``bitbrush.methods``, or a program by :func:`register_method`.
"""

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitbrush.methods.method import Method

GROUP = "bitbrush.methods"
DEFAULT_METHOD = "best"
"""Of ``bitbrush quantize``: the best found; docs/results.md has its figures, docs/methods.md its cost."""
BUILT_IN = {
    "pcr": "bitbrush.methods.pcr:PCR",
    "best": "bitbrush.methods.best:BEST",
    "one-shot": "bitbrush.methods.one_shot:ONE_SHOT",
    "ptq4dm": "bitbrush.methods.ptq4dm:PTQ4DM",
    "qdiffusion": "bitbrush.methods.qdiffusion:QDIFFUSION",
    "smoothquant": "bitbrush.methods.smoothquant:SMOOTHQUANT",
    "dynamic": "bitbrush.methods.dynamic:DYNAMIC",
    "rtn": "bitbrush.methods.rtn:RTN",
    "paper": "bitbrush.methods.paper:PAPER",
}


class Methods(Mapping[str, "Method"]):
    """The built-in methods, then those of installed packages, then those registered by the running program."""

    def __init__(self) -> None:
        self._places = {name: EntryPoint(name, place, GROUP) for name, place in BUILT_IN.items()}
        self._places |= {point.name: point for point in entry_points(group=GROUP) if point.name not in BUILT_IN}
        self._registered: dict[str, Method] = {}

    def __getitem__(self, name: str) -> "Method":
        if name in self._registered:
            return self._registered[name]
        method: Method = self._places[name].load()
        return method

    def __iter__(self) -> Iterator[str]:
        return iter([*self._places, *self._registered])

    def __len__(self) -> int:
        return len(self._places) + len(self._registered)

    def named(self, name: str) -> "Method":
        """Returns the method of that name.

        Raises:
            ValueError: There is none; the message lists those that exist.
        """
        if name not in self:
            raise ValueError(f"method is {name!r}; known are {', '.join(self)}")
        return self[name]

    def register(self, method: "Method") -> None:
        """Adds a method to the running program.

        Raises:
            ValueError: Another method has its name.
        """
        if method.name in self and self[method.name] is not method:
            raise ValueError(f"method {method.name!r} exists already; give yours another name")
        self._registered[method.name] = method


METHODS = Methods()


def register_method(method: "Method") -> None:
    """Adds a method under its name; recipes, the command line and ``ablate`` of this process then know it."""
    METHODS.register(method)
