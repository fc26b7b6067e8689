"""Draws of timesteps have the distributions that their papers name."""

import numpy as np

from bitbrush.calibration.timestep_sampling import skewed_normal_draws

TIMESTEPS = tuple(float(t) for t in range(981, 0, -20))


def test_skewed_draws_follow_the_truncated_normal() -> None:
    draws = 200_000
    counts = skewed_normal_draws(TIMESTEPS, seed=0, draws=draws)
    assert counts.total() == draws
    most = TIMESTEPS[0]
    density = np.array([np.exp(-0.5 * ((t - 0.4 * most) / (0.5 * most)) ** 2) for t in TIMESTEPS])
    found = np.array([counts[t] for t in TIMESTEPS])[1:-1] / draws  # the ends have half, and one and a half, the width
    expected = density[1:-1] / density[1:-1].sum() * found.sum()
    assert np.abs(found / expected - 1).max() < 0.1


def test_more_draws_lie_near_x0_than_near_noise() -> None:
    counts = skewed_normal_draws(TIMESTEPS, seed=0)
    middle = TIMESTEPS[0] / 2
    near_x0 = sum(count for t, count in counts.items() if t < middle)
    assert 0.53 < near_x0 / counts.total() < 0.63
    assert counts == skewed_normal_draws(TIMESTEPS, seed=0) != skewed_normal_draws(TIMESTEPS, seed=1)
