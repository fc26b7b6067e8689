"""A function that can be stopped at chosen calls, looked at, and answered.

Progressive calibration must advance many ``pipe(...)`` calls step by step, and block reconstruction many denoiser calls
block by block, through code that is not ours. Each such call runs in a thread of its own that stands still except
while it is being answered, so at any moment exactly one thread runs and the order of all computations is fixed.
"""

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, Never, Self, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")
Result = TypeVar("Result")


class Cancelled(BaseException):
    """Raised inside a suspended function that is closed before its end; unwinds it."""


class Suspension(Generic[Request, Answer, Result]):
    """``function(hand_out)`` run up to each ``hand_out(request)``, whose value :meth:`answer` supplies.

    ``request`` is what the function waits with, None once it has returned; ``result`` is then its return value. What
    the function raises is raised from the constructor or from :meth:`answer`. Use it as a context manager, or close
    it: a suspension left waiting holds a thread.
    """

    request: Request | None
    result: Result | None

    def __init__(self, function: Callable[[Callable[[Request], Answer]], Result]) -> None:
        self._function = function
        self._answers: SimpleQueue[Callable[[], Answer]] = SimpleQueue()
        self._reports: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.request = None
        self.result = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._reports.get()()

    def answer(self, value: Answer) -> None:
        """Hands ``value`` to the waiting function and lets it run to its next request, or to its end."""
        if self.request is None:
            raise RuntimeError("the suspended function has returned; there is nothing to answer")
        self._answers.put(lambda: value)
        self._reports.get()()

    def close(self) -> None:
        """Unwinds the function if it still waits, again if it hands out while it unwinds."""
        while self.request is not None:
            self._answers.put(_cancel)
            self._reports.get()()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _hand_out(self, request: Request) -> Answer:
        self._reports.put(lambda: self._wait_with(request))
        return self._answers.get()()

    def _run(self) -> None:
        try:
            result = self._function(self._hand_out)
        except Cancelled:
            self._reports.put(lambda: self._end_with(None))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised where the caller waits
            raised = error
            self._reports.put(lambda: self._fail_with(raised))
        else:
            self._reports.put(lambda: self._end_with(result))

    def _wait_with(self, request: Request) -> None:
        self.request = request

    def _end_with(self, result: Result | None) -> None:
        self.request, self.result = None, result

    def _fail_with(self, error: BaseException) -> None:
        self.request = None
        raise error


def _cancel() -> Never:
    raise Cancelled
