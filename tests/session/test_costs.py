"""What is written down about the cost of a phase."""

import time

import pytest

from bitbrush.session.costs import CostLedger
from bitbrush.session.memory import peak_resident_mib


def test_phases_in_the_order_in_which_they_ended() -> None:
    ledger = CostLedger()
    with ledger.phase("outer"):
        ledger.count_call()
        with ledger.phase("inner"):
            for _ in range(3):
                ledger.count_call()
            time.sleep(0.01)
    assert list(ledger.phases) == ["inner", "outer"]
    assert [cost.denoiser_calls_per_batch for cost in ledger.phases.values()] == [3, 4]  # those inside count, too
    assert 0.01 <= ledger.phases["inner"].seconds <= ledger.phases["outer"].seconds


def test_a_phase_that_failed_has_no_cost() -> None:
    ledger = CostLedger()
    with pytest.raises(KeyError), ledger.phase("broken"):
        raise KeyError
    assert not ledger.phases


def test_peak_memory_is_in_mib_and_only_grows() -> None:
    before = peak_resident_mib()
    assert 50 < before < 1 << 20  # torch alone takes more than 50 MiB
    ballast = b"x" * (200 << 20)
    assert len(ballast) == 200 << 20
    assert peak_resident_mib() >= max(before, 200)
    del ballast
    assert peak_resident_mib() >= max(before, 200)
