"""Bits under a budget: against every possible choice, and against the bound."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitbrush.numerics.allocation import allocate

CHOICES = (2, 4, 8)


def best_of_all(distortion: torch.Tensor, sizes: torch.Tensor, budget: float) -> float:
    """The least distortion of all choices within the budget."""
    totals = []
    for picks in itertools.product(range(len(CHOICES)), repeat=len(sizes)):
        bits = torch.tensor([CHOICES[pick] for pick in picks])
        if float((bits * sizes).sum()) <= budget * float(sizes.sum()) + 1e-9:
            totals.append(float(distortion[torch.arange(len(sizes)), list(picks)].sum()))
    return min(totals)


@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(2.0, 8.0))
def test_no_choice_is_below_the_bound_and_the_result_is_within_one_climb_of_it(
    seed: int, items: int, budget: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.exp(4 * torch.randn(items, 1, generator=generator, dtype=torch.float64))
    distortion = scale * torch.rand(items, len(CHOICES), generator=generator, dtype=torch.float64)
    sizes = torch.randint(1, 9, (items,), generator=generator).double()

    found = allocate(distortion, CHOICES, sizes, budget)
    least = best_of_all(distortion, sizes, budget)

    assert found.average <= budget + 1e-6
    assert found.bound <= least * (1 + 1e-9)
    assert least <= found.distortion * (1 + 1e-9)
    assert found.distortion - found.bound <= float((distortion[:, 0] - distortion.amin(1)).max()) * (1 + 1e-9)


def test_of_two_equal_items_the_one_that_matters_more_gets_the_bits() -> None:
    distortion = torch.tensor([[1.0, 0.25, 0.01], [100.0, 25.0, 1.0]])

    found = allocate(distortion, CHOICES, torch.ones(2), 5.0)

    assert found.bits.tolist() == [2, 8]
    assert found.average == 5.0
    assert found.distortion == pytest.approx(2.0)


def test_a_budget_for_everything_gives_every_item_its_best() -> None:
    distortion = torch.tensor([[4.0, 2.0, 1.0], [4.0, 1.0, 3.0]])  # more bits can hurt where they were measured

    found = allocate(distortion, CHOICES, torch.ones(2), 8.0)

    assert found.bits.tolist() == [8, 4]
    assert found.distortion == found.bound == 2.0


def test_many_items_of_one_law_come_close_to_the_bound() -> None:
    generator = torch.Generator().manual_seed(0)
    sensitivity = torch.exp(2 * torch.randn(500, 1, generator=generator))
    choices = (4, 6, 8, 10, 16)
    distortion = sensitivity * torch.tensor([4.0**-bits for bits in choices])

    found = allocate(distortion, choices, torch.rand(500, generator=generator) + 0.1, 8.2)

    assert found.distortion < 1.01 * found.bound
    assert 8.15 < found.average <= 8.2


def test_a_budget_below_the_fewest_bits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"budget is 1\.5 bits"):
        allocate(torch.ones(1, 3), CHOICES, torch.ones(1), 1.5)


def test_a_distortion_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        allocate(torch.tensor([[1.0, float("nan"), 0.0]]), CHOICES, torch.ones(1), 4.0)
