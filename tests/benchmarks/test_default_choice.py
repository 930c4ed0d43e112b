"""What a user gets without thinking, beside other methods: every textbook system, exact, noisy, and little of it."""

from __future__ import annotations

import time
from itertools import product

import pytest

from tests.command import Snet

SYSTEMS = {
    "pendulum": (10, 0.05),
    "duffing": (20, 0.05),
    "van-der-pol": (20, 0.05),
    "lotka-volterra": (20, 0.05),
    "cascaded-tanks": (1000, 0.1),
}
"""Horizon T of training, and noise: 2 to 7 % of the channels' deviations."""

DATA = {"exact": (20, 1.0, 0.0), "noisy": (20, 0.5, 1.0), "few": (3, 1.0, 1.0)}
"""Trajectories, share of the samples that is kept, and share of the noise."""

FACTOR = 2.0
"""Most error of the default over that of the best method: one data set each, whose chance is about that."""


@pytest.mark.bench
@pytest.mark.parametrize(("system", "data"), list(product(SYSTEMS, DATA)))
def test_the_default_is_the_best_method_or_nearly_so(snet: Snet, system: str, data: str) -> None:
    (horizon, noise), (trajectories, keep, share) = SYSTEMS[system], DATA[data]
    few = ("--unknown-x0",) if data == "few" else ()
    words = ("--trajectories", trajectories, "--keep", keep, "--noise", share * noise, *few)
    assert snet("simulate", system, "-o", "train.h5", *words).code == 0
    longer = ("--horizon", 2 * horizon, "--samples", 400, "--trajectories", 20, "--seed", 1)
    assert snet("simulate", system, "-o", "test.h5", *longer).code == 0
    error, seconds = {}, {}
    for method in ("auto", "delta", "alpha"):
        begin = time.perf_counter()
        fit = snet("fit", "train.h5", "-o", "m.h5", "-f", "--method", method, "--threads", 1)
        assert fit.code == 0, fit.err
        seconds[method] = time.perf_counter() - begin
        error[method] = snet("evaluate", "m.h5", "test.h5", "--json").json["nrmse"]
    told = ", ".join(f"{method} {error[method]:.2g} in {seconds[method]:.0f} s" for method in error)
    print(f"\n{system}, {data}: {told}", flush=True)
    assert error["auto"] <= FACTOR * min(error["delta"], error["alpha"])
