"""diffusers' own ``from_pretrained`` and ``save_pretrained``, for the code that loads and saves parts of artifacts."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_PLAIN: ContextVar[bool] = ContextVar("bitbrush_plain", default=False)


@contextmanager
def plain() -> Iterator[None]:
    """Makes diffusers load and save as it does without bitbrush, for the code inside."""
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


def is_plain() -> bool:
    """Tells whether diffusers is to load and save by itself."""
    return _PLAIN.get()
