"""Cache of results that repeat from one denoising step, or one generation, to the next."""

import copy
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor


class Copies:
    """Copies of the last few tensors; caches that read the same tensors share one copy of each.

    An unchanged tensor is found by its identity, and any other by its values.
    """

    def __init__(self, *, entries: int) -> None:
        self._copies: deque[Tensor] = deque(maxlen=entries)
        self._last: tuple[weakref.ref[Tensor], int, Tensor] | None = None

    def __deepcopy__(self, _: dict[int, Any]) -> "Copies":
        return Copies(entries=self._copies.maxlen or 1)

    def of(self, x: Tensor) -> Tensor:
        """Returns the one copy with the dtype and values of ``x``, made now unless there is one."""
        last = self._last  # read once: another thread may replace it
        if last is not None and last[0]() is x and not x.is_inference() and x._version == last[1]:
            return last[2]
        found = next((one for one in tuple(self._copies) if one.dtype == x.dtype and torch.equal(one, x)), None)
        if found is None:
            found = x.clone()
            self._copies.append(found)
        if not x.is_inference():  # these have no count of writes
            self._last = weakref.ref(x), x._version, found
        return found


class Memo:
    """Cache of the last few results, found by an equal key and an equal input tensor.

    Threads may share a cache. A copy starts empty.
    """

    def __init__(self, *, entries: int, copies: Copies | None = None) -> None:
        self._limit = entries
        self._copies = copies or Copies(entries=entries)
        self._known: dict[Hashable, tuple[Tensor, Tensor]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """Returns the cached result of ``x`` under ``key``, or caches and returns ``compute()``."""
        with self._lock:
            known = self._known.get(key)
        own = self._copies.of(x)
        if known is None or known[0] is not own:
            known = own, compute()
        with self._lock:
            self._known.pop(key, None)
            self._known[key] = known  # re-inserted at the end: the first entry is the least recently used
            if len(self._known) > self._limit:
                del self._known[next(iter(self._known))]
        return known[1]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Memo":
        return Memo(entries=self._limit, copies=copy.deepcopy(self._copies, memo))


class Remembered:
    """Function of a tensor with a cache of its last few results, each stored under the ``key()`` of its call."""

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        key: Callable[[], Hashable],
        *,
        entries: int,
        copies: Copies | None = None,
    ) -> None:
        self._function, self._key, self._memo = function, key, Memo(entries=entries, copies=copies)

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the cached or newly computed result."""
        return self._memo.get(self._key(), x, lambda: self._function(x))
