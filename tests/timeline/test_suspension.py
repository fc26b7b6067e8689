"""Suspended functions: one thread at a time, errors carried over, everything unwound at the end."""

import threading
from collections.abc import Callable, Iterator

import pytest

from bitbrush.timeline.suspension import Suspension


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    more = set(threading.enumerate()) - before
    for thread in more:
        thread.join(timeout=5)  # a function that raised may still be leaving its thread
    assert not any(thread.is_alive() for thread in more)


def test_runs_to_each_request_and_to_its_result() -> None:
    log = []

    def function(ask: Callable[[str], int]) -> int:
        log.append("begun")
        first = ask("first")
        log.append(f"got {first}")
        second = ask("second")
        log.append(f"got {second}")
        return first + second

    with Suspension(function) as suspension:
        assert (suspension.request, suspension.result, log) == ("first", None, ["begun"])
        suspension.answer(1)
        assert (suspension.request, suspension.result, log) == ("second", None, ["begun", "got 1"])
        suspension.answer(2)
        assert (suspension.request, suspension.result, log) == (None, 3, ["begun", "got 1", "got 2"])
        with pytest.raises(RuntimeError, match="nothing to answer"):
            suspension.answer(3)
    assert suspension.result == 3


def test_a_function_that_asks_nothing() -> None:
    with Suspension(lambda _: "done") as suspension:
        assert (suspension.request, suspension.result) == (None, "done")


def test_none_is_an_answer() -> None:
    def function(ask: Callable[[str], None]) -> list[None]:
        return [ask("a"), ask("b")]

    with Suspension(function) as suspension:
        suspension.answer(None)
        suspension.answer(None)
        assert suspension.result == [None, None]


def test_many_advance_in_the_order_in_which_they_are_answered() -> None:
    log = []

    def function(name: str) -> Callable[[Callable[[int], None]], None]:
        def run(ask: Callable[[int], None]) -> None:
            for step in range(3):
                log.append((name, step))
                ask(step + 1)

        return run

    with Suspension(function("a")) as a, Suspension(function("b")) as b:
        for _ in range(2):
            b.answer(None)
            a.answer(None)
    assert log == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("b", 2), ("a", 2)]


class Broken(Exception):
    pass


def test_an_error_before_the_first_request_comes_out_of_the_constructor() -> None:
    def function(ask: Callable[[str], None]) -> None:
        raise Broken("at once")

    with pytest.raises(Broken, match="at once"):
        Suspension(function)


def test_an_error_later_comes_out_of_the_answer() -> None:
    def function(ask: Callable[[str], None]) -> None:
        ask("first")
        raise Broken("later")

    with Suspension(function) as suspension:
        with pytest.raises(Broken, match="later"):
            suspension.answer(None)
        assert (suspension.request, suspension.result) == (None, None)
        with pytest.raises(RuntimeError, match="nothing to answer"):
            suspension.answer(None)


def test_even_an_exit_is_carried_over() -> None:
    def function(ask: Callable[[str], None]) -> None:
        ask("first")
        raise SystemExit(2)

    with Suspension(function) as suspension, pytest.raises(SystemExit):
        suspension.answer(None)


def test_close_unwinds() -> None:
    log = []

    def function(ask: Callable[[str], None]) -> None:
        try:
            ask("first")
            log.append("never")
        except Exception:
            log.append("never either")
            raise
        finally:
            log.append("cleaned up")

    suspension = Suspension(function)
    suspension.close()
    assert log == ["cleaned up"]
    assert (suspension.request, suspension.result) == (None, None)
    suspension.close()


def test_close_unwinds_a_function_that_asks_while_it_is_unwound() -> None:
    log = []

    def function(ask: Callable[[str], None]) -> None:
        try:
            ask("first")
        finally:
            try:
                ask("once more")
            finally:
                log.append("cleaned up")

    Suspension(function).close()
    assert log == ["cleaned up"]


def test_an_error_in_the_context_unwinds_all() -> None:
    log = []

    def function(ask: Callable[[str], None]) -> None:
        try:
            ask("first")
        finally:
            log.append("cleaned up")

    with pytest.raises(Broken), Suspension(function), Suspension(function):
        raise Broken
    assert log == ["cleaned up", "cleaned up"]


def test_an_error_while_unwinding_is_not_lost() -> None:
    def function(ask: Callable[[str], None]) -> None:
        try:
            ask("first")
        finally:
            raise Broken("cleaning up")

    suspension = Suspension(function)
    with pytest.raises(Broken, match="cleaning up"):
        suspension.close()
    assert suspension.request is None
