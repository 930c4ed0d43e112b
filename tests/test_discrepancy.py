"""Errors that repeat each other, and the dispersion of a posterior that has to hold them."""

from __future__ import annotations

import numpy as np
import pytest

from snet_cli.training.discrepancy import MOST_DISPERSION, determined, dispersion, pattern_of

TRAJECTORIES, SAMPLES = 20, 500


def smooth_errors(rng, memory):
    """x_k = memory x_{k-1} + e of unit variance, begun anew with each trajectory."""
    drive = rng.standard_normal((TRAJECTORIES, SAMPLES)) * np.sqrt(1 - memory**2)
    errors = np.empty_like(drive)
    errors[:, 0] = rng.standard_normal(TRAJECTORIES)
    for k in range(1, SAMPLES):
        errors[:, k] = memory * errors[:, k - 1] + drive[:, k]
    return errors.ravel()


@pytest.fixture
def owner():
    return np.repeat(np.arange(TRAJECTORIES), SAMPLES)


def test_white_errors_repeat_nothing(owner):
    rng = np.random.default_rng(0)
    found = [pattern_of(rng.standard_normal(owner.size), owner) for _ in range(40)]
    # two standard deviations are passed by chance in one of 40; what is left of the share is a part of that chance
    assert sum(tau == 1.0 and share == 0.0 for tau, share in found) >= 36
    assert max(share for _, share in found) < 2 / np.sqrt(owner.size)
    assert pattern_of(np.zeros(9), np.zeros(9, np.int64)) == (1.0, 0.0)


def test_errors_that_repeat_each_other_count_once(owner):
    tau, share = pattern_of(smooth_errors(np.random.default_rng(0), 0.8), owner)
    assert tau == pytest.approx(9.0, rel=0.4)  # (1 + 0.8) / (1 - 0.8); of 10 000 values: ± 1.2
    assert share == pytest.approx(0.8 - 2 / np.sqrt(owner.size), abs=0.03)


def test_the_share_is_that_of_the_smooth_part(owner):
    rng = np.random.default_rng(1)
    _, share = pattern_of(0.3 * smooth_errors(rng, 0.98) + rng.standard_normal(owner.size), owner)
    # ρ_1 = 0.98 · 0.09 / 1.09 = 0.081 ± 0.01, less the two standard deviations that chance could show
    assert share == pytest.approx(0.081 - 0.02, abs=0.03)


def test_short_trajectories_lose_no_share():
    rng = np.random.default_rng(2)
    errors = np.repeat(rng.standard_normal(2000), 3)  # constant in each trajectory of three samples
    tau, share = pattern_of(errors, np.repeat(np.arange(2000), 3))
    assert share == pytest.approx(1.0, abs=0.06)
    assert tau == pytest.approx(3.0, rel=0.05)


def test_dispersion_makes_bands_as_wide_as_what_they_have_to_hold():
    information = 10.0 ** np.arange(-3, 9)
    for discrepancy in (0.1, 10.0, 1e4):
        phi = dispersion(information, discrepancy)
        assert phi > 1.0
        held = phi * determined(information, phi)
        assert held == pytest.approx(discrepancy + determined(information, 1.0), rel=1e-6)
    # where every number stays determined, each takes its part of the discrepancy
    assert dispersion(np.full(5, 1e9), 500.0) == pytest.approx(101.0, rel=1e-5)


@pytest.mark.parametrize(
    ("information", "discrepancy", "expected"),
    [(np.full(3, 4.0), 0.0, 1.0), (np.zeros(3), 7.0, 1.0), (np.full(3, 4.0), 13.0, MOST_DISPERSION)],
    ids=["white errors", "nothing determined", "wider than the prior's band"],
)
def test_dispersion_at_its_ends(information, discrepancy, expected):
    assert dispersion(information, discrepancy) == expected
