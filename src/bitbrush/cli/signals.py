"""Signals that end a command: SIGINT and SIGTERM unwind it once, however often they come."""

import math
import signal
import time
from types import FrameType

SECONDS_TO_UNWIND = 10.0
"""Signals within this time of the first are ignored, since people press twice; a later one interrupts again."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which unwinds a command as an interruption from the keyboard does."""


def unwind_on_signals() -> None:
    """Makes SIGINT and SIGTERM raise KeyboardInterrupt and Terminated; one that is ignored already stays so."""
    first = -math.inf

    def interrupt(number: int, _: FrameType | None) -> None:
        nonlocal first
        if time.monotonic() - first < SECONDS_TO_UNWIND:
            return
        first = time.monotonic()
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


def ignore_signals() -> None:
    """Ignores SIGINT and SIGTERM while the process ends, so that its last words stay whole."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
