"""Errors that repeat each other, and the dispersion of a posterior that has to hold them."""

from __future__ import annotations

import numpy as np
import pytest

from snet_cli.training.discrepancy import MOST_DISPERSION, dispersions, pattern_of

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


@pytest.fixture
def roots():
    """Roots of the information of two outputs: each determines some directions alone, and some with the other."""
    rng = np.random.default_rng(3)
    directions = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    first, second = 10.0 ** np.linspace(-3, 6, 12), 10.0 ** np.linspace(5, -4, 12)
    return [np.diag(size) @ directions for size in (first, second)]


def held(roots, phi):
    """What the band of each output holds at the samples: tr I_d Cov(φ), from the definition."""
    precision = np.eye(12) + sum(root.T @ root / by for root, by in zip(roots, phi, strict=True))
    spread = [root @ np.linalg.inv(np.linalg.cholesky(precision)).T for root in roots]
    return np.array([np.sum(part**2) for part in spread])


def solved(roots, discrepancy):
    """What `dispersions` finds for roots in any basis."""
    _, size, right = np.linalg.svd(np.concatenate(roots))
    return dispersions([root @ right.T for root in roots], size**2, np.array(discrepancy))


@pytest.mark.parametrize("discrepancy", [(0.1, 5.0), (1e4, 10.0), (300.0, 300.0)])
def test_bands_of_each_output_are_as_wide_as_what_they_have_to_hold(roots, discrepancy):
    phi = solved(roots, discrepancy)
    asked = np.array(discrepancy) + held(roots, np.ones(2))
    found = held(roots, phi)
    assert (phi >= 1.0).all()
    # rounds end when φ moves by 1e-3; an output whose φ cannot be less than 1 is held by the other's width
    np.testing.assert_allclose(found[phi > 1.0], asked[phi > 1.0], rtol=2e-2)
    assert (found[phi == 1.0] >= asked[phi == 1.0]).all()


def test_numbers_that_stay_determined_share_the_discrepancy():
    assert solved([np.eye(5) * 1e5], [500.0]) == pytest.approx([101.0], rel=1e-2)


@pytest.mark.parametrize(
    ("root", "discrepancy", "expected"),
    [(2.0, 0.0, 1.0), (0.0, 7.0, 1.0), (2.0, 13.0, MOST_DISPERSION)],
    ids=["white errors", "nothing determined", "wider than the prior's band"],
)
def test_dispersion_at_its_ends(root, discrepancy, expected):
    assert solved([root * np.eye(3)], [discrepancy]).tolist() == [expected]
