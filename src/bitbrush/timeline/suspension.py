"""Suspension of a function at chosen calls, whose requests can be inspected and answered.

Progressive calibration advances many ``pipe(...)`` calls step by step. Block reconstruction advances many denoiser
calls block by block. Both run through code that is not ours.

Each such call runs in a thread of its own, which waits except while it is being answered. So exactly one thread runs at
any moment, and the order of all computations is fixed.
"""

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, Never, Self, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")
Result = TypeVar("Result")


class Cancelled(BaseException):
    """Closing of a suspended function before its end; raised inside the function to unwind it."""


class Suspension(Generic[Request, Answer, Result]):
    """Run of ``function(hand_out)`` that stops at each ``hand_out(request)`` until :meth:`answer` supplies its value.

    ``request`` is the current request, None once the function has returned; ``result`` is then its return value. Errors
    of the function are raised from the constructor or from :meth:`answer`. Use it as a context manager, or close it: a
    suspension that is not closed holds a thread.
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
        """Hands ``value`` to the suspended function and lets it run to its next request, or to its end.

        Raises:
            RuntimeError: The function has returned already.
        """
        if self.request is None:
            raise RuntimeError("the suspended function has returned; there is nothing to answer")
        self._answers.put(lambda: value)
        self._reports.get()()

    def close(self) -> None:
        """Unwinds the function if it is suspended, repeatedly if it hands out requests while it unwinds."""
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
        except BaseException as error:  # noqa: BLE001 - whatever it is, the caller's thread raises it
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
