"""Registry of methods by the value of a recipe's ``method`` key; methods are imported lazily.

Other packages add methods with the entry point group ``bitbrush.methods``, programs with :func:`register_method`.
"""

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitbrush.methods.method import Method

GROUP = "bitbrush.methods"
DEFAULT_METHOD = "best"
"""Default of ``bitbrush quantize``: the best known method; docs/results.md has figures, docs/methods.md costs."""
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
    """Mapping of built-in methods, then those of installed packages, then those registered by the running program."""

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
        """Returns the method of a name.

        Raises:
            ValueError: No method has this name; the message lists the known names.
        """
        if name not in self:
            raise ValueError(f"method is {name!r}; known are {', '.join(self)}")
        return self[name]

    def register(self, method: "Method") -> None:
        """Adds a method to the running program.

        Raises:
            ValueError: Another method has the same name.
        """
        if method.name in self and self[method.name] is not method:
            raise ValueError(f"method {method.name!r} exists already; give yours another name")
        self._registered[method.name] = method


METHODS = Methods()


def register_method(method: "Method") -> None:
    """Registers a method for recipes, the command line and ``ablate`` of this process.

    Args:
        method: Method with an unused name.

    Raises:
        ValueError: Another method has the same name.
    """
    METHODS.register(method)
