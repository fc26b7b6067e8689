"""Memory in which the layers of a denoiser expand their weights, one after another."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor

from bitbrush.runtime.onednn.opaque import Layout, wrap
from bitbrush.session.offload import CPU


class Workspace:
    """Single buffer, of the size of the largest layer: what one layer wrote is still in the cache for the next.

    Threads wait for each other while a layer multiplies. Copies of a denoiser share the buffer.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._nbytes = 0
        self._packed: dict[Layout, tuple[Tensor, Tensor]] = {}
        self._memory: Tensor | None = None

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        return self

    def reserve(self, nbytes: int) -> None:
        """Makes the buffer, which is allocated at first use, hold at least ``nbytes``."""
        with self._lock:
            if nbytes > self._nbytes:
                self._nbytes, self._memory = nbytes, None
                self._packed.clear()

    @contextmanager
    def filled(self, layout: Layout, fill: Callable[[Tensor], None]) -> Iterator[Tensor]:
        """Lends the buffer as packed weights.

        Args:
            layout: Layout of the weights.
            fill: Writes their bytes into a tensor (n,) uint8.

        Yields:
            The packed weights, which are valid within the ``with`` statement only.
        """
        with self._lock:
            memory, packed = self._of(layout)
            fill(memory)
            yield packed

    def _of(self, layout: Layout) -> tuple[Tensor, Tensor]:
        known = self._packed.get(layout)
        if known is None:
            if self._memory is None:
                with torch.inference_mode(mode=False):  # later calls write to it in any mode
                    self._memory = torch.empty(self._nbytes, dtype=torch.uint8, device=CPU)
            memory = self._memory[: layout.nbytes]
            known = self._packed[layout] = memory, wrap(memory, layout)
        return known
