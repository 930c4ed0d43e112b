"""A thousand random networks, twenty starts each, in one call: no hang, nothing that is no number, all counted."""

import time

import numpy as np
import pytest
import torch

from snet_cli.data.signals import Inputs
from snet_cli.integration import InputSignal, Outcome, Tolerances, integrate

NETWORKS, STARTS, HIDDEN = 1000, 20, 8


def random_networks(seed):
    """x' = W2 a(W1 x + b) with a drawn from tanh, relu², sinh and √; the last channel of u says which network."""
    rng = np.random.default_rng(seed)
    W1 = torch.tensor(rng.normal(size=(NETWORKS, HIDDEN, 2)) * rng.choice([0.5, 2.0, 8.0], (NETWORKS, 1, 1)))
    W2 = torch.tensor(rng.normal(size=(NETWORKS, 2, HIDDEN)) * rng.choice([0.3, 1.0, 3.0], (NETWORKS, 1, 1)) / HIDDEN)
    b = torch.tensor(rng.normal(size=(NETWORKS, HIDDEN)))
    kind = torch.tensor(rng.choice(4, NETWORKS, p=[0.6, 0.2, 0.1, 0.1]))

    def f(t, x, u):
        k = u[:, -1].to(torch.int64)
        z = torch.baddbmm(b[k, :, None], W1[k], x[:, :, None])[:, :, 0]
        which = kind[k][:, None]
        a = torch.where(which == 0, z.tanh(), z)
        a = torch.where(which == 1, z.clamp(min=0.0).square(), a)
        a = torch.where(which == 2, z.sinh(), a)
        a = torch.where(which == 3, (z + 3.0).sqrt(), a)
        return torch.bmm(W2[k], a[:, :, None])[:, :, 0]

    return f


@pytest.mark.slow
def test_a_thousand_random_networks():
    B, K, T = NETWORKS * STARTS, 11, 10.0
    x0 = torch.tensor(np.random.default_rng(1).uniform(-1, 1, (B, 2)))
    network = torch.arange(NETWORKS, dtype=torch.float64).repeat_interleave(STARTS)[:, None]
    times = torch.linspace(0.0, T, K, dtype=torch.float64)
    begun = time.perf_counter()
    solution = integrate(
        random_networks(0),
        x0,
        torch.zeros(B, dtype=torch.float64),
        torch.full((B,), K),
        times.repeat(B),
        InputSignal.from_inputs(Inputs.none(), B, network),
        scale=torch.ones(2),
        center=torch.zeros(2),
        tolerances=Tolerances(rtol=1e-5, atol=1e-7, max_evaluations=20_000),
    )
    assert time.perf_counter() - begun < 120.0
    states = solution.states.reshape(B, K, 2)
    counts = {outcome: solution.count(outcome) for outcome in Outcome}
    assert sum(counts.values()) == B
    assert counts[Outcome.OK] > 0.5 * B
    assert counts[Outcome.DIVERGED] > 0.05 * B
    finished = solution.outcome == Outcome.OK
    assert torch.isfinite(states[finished]).all()
    reached = times <= solution.end_time[:, None]
    assert torch.isfinite(states[reached]).all()
    assert torch.isnan(states[~reached]).all()
    assert (states[finished].abs() <= 1000.0).all()
    assert (solution.end_time[~finished] < T).all()
