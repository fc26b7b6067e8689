"""One denoiser call at a time: the step's buffers, and the places that a graph reads and writes, are one for all."""

import threading
from types import TracebackType
from typing import Any

import torch


class Turns:
    """A lock for threads, which also makes the streams of a card wait for each other.

    Launching is what is locked: no thread waits for the card.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._lock = device, threading.Lock()
        self._done: torch.cuda.Event | None = None

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._done is not None:
            torch.cuda.current_stream(self._device).wait_event(self._done)

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        try:
            if self._device.type == "cuda":
                self._done = torch.cuda.current_stream(self._device).record_event()
        finally:
            self._lock.release()

    def __deepcopy__(self, _: dict[int, Any]) -> "Turns":
        return Turns(self._device)  # a copied denoiser has buffers of its own
