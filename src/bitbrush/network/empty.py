"""Networks without values, built for the names and shapes of their tensors or to be filled from a file."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import init_empty_weights
from torch.overrides import TorchFunctionMode


class _SkipInit(TorchFunctionMode):
    """Makes the functions of ``torch.nn.init`` leave tensors as they are, in this thread."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return named["tensor"] if "tensor" in named else args[0]
        return func(*args, **named)


@contextmanager
def without_values() -> Iterator[None]:
    """Builds networks whose parameters are on the meta device while entered.

    No parameter is initialized: on the meta device that takes longer than all the rest of building a network.
    """
    with init_empty_weights(include_buffers=False), _SkipInit():
        yield
