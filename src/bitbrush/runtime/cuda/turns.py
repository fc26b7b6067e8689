"""Serialization of denoiser calls: they share the buffers of the step and the input and output addresses of a graph."""

import threading
from types import TracebackType
from typing import Any

import torch


class Turns:
    """Lock for threads that also orders the streams of a GPU.

    Only launches are locked: no thread waits for the GPU.
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
        return Turns(self._device)  # a copied denoiser has its own buffers
