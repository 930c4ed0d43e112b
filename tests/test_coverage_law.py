"""Bands hold what they promise on simulated vehicles, within the training horizon and far beyond it."""

from __future__ import annotations

import numpy as np
import pytest

NOISY = [(1, ("--noise", "0.05")), (2, ("--noise", "0.05", "--keep", "0.5")), (3, ("--noise", "0.05", "--keep", "0.5"))]
EXACT = [(4, ()), (6, ("--keep", "0.5")), (7, ("--set", "harmonics=3"))]
"""Seed of the training data, and what is measured of them."""


@pytest.mark.slow
@pytest.mark.parametrize("settings", [NOISY, EXACT], ids=["noise", "no noise"])
def test_bands_hold_nine_tenths_of_the_truth_and_no_more_than_noise_asks_for(snet, settings):
    held = []
    for seed, measured in settings:
        simulated = ("simulate", "vehicle", "-f")
        train = snet(*simulated, "-o", "a.h5", "--seed", seed, "--trajectories", "50", *measured)
        test = snet(
            *simulated, "-o", "t.h5", "--seed", seed + 100, "--trajectories", "20", "--horizon", "100",
            "--samples", "201",
        )  # fmt: skip
        fit = snet("fit", "a.h5", "-o", "m.h5", "-f", "--method", "joint", "--set", "model.hidden=[16]")
        for ran in (train, test, fit):
            assert ran.code == 0, ran.err
        found = [
            snet("evaluate", "m.h5", "t.h5", "--bands", "--horizon", horizon, "--json").json["bands"]
            for horizon in ("10", "100")
        ]
        held.append([found[0]["coverage"], found[1]["coverage"], found[1]["by_horizon"][-1]["coverage"]])
        assert found[1]["unbounded"] == 0
    # one fit has one error in θ, which all its forecasts share: coverages of a fit scatter about the level
    assert np.min(held) > 0.85, held
    assert (np.mean(held, axis=0) > 0.90).all(), held
    assert (np.mean(held, axis=0) < 0.99).all(), held
