"""Our integrator beside torchdiffeq's dopri5: same f, same batch, same tolerances, same output times.

torchdiffeq steps the whole batch at one pace and takes the root mean square of all errors; we give every trajectory
its own step and let its worst state decide. So the comparison is of what a user gets for one tolerance.
Run with ``pytest -m bench tests/benchmarks``; timings alternate, and the best of each counts.
"""

import time

import numpy as np
import pytest
import torch
from torchdiffeq import odeint

from snet_cli.integration import InputSignal, Tolerances, integrate
from snet_cli.systems.registry import get_system
from snet_cli.systems.streams import Stream, generators
from snet_cli.systems.system import InputDraw

pytestmark = pytest.mark.bench
RTOL, ATOL = 1e-7, 1e-9
CASES = [
    ("vehicle", 100, 10.0, True),
    ("vehicle", 100, 100.0, True),
    ("vehicle", 100, 10.0, False),
    ("vehicle", 1, 10.0, False),
    ("vehicle", 1000, 10.0, False),
    ("pendulum", 100, 10.0, False),
    ("van-der-pol", 100, 20.0, False),
    ("lotka-volterra", 100, 20.0, False),
    ("multi-agent", 20, 10.0, False),
]


def network():
    """A small surrogate of the vehicle: 8 -> 32 -> 32 -> 6."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [
            torch.nn.Linear(8, 32),
            torch.nn.Tanh(),
            torch.nn.Linear(32, 32),
            torch.nn.Tanh(),
            torch.nn.Linear(32, 6),
        ]
        net = torch.nn.Sequential(*layers).double()
    return lambda t, x, u: net(torch.cat([x, u], 1))


def contest(name, B, T, learned):
    """Best seconds of ours and of theirs."""
    system = get_system(name)
    chosen = system.parameters()
    x0 = torch.tensor(np.stack([system.start(chosen, rng) for rng in generators(0, Stream.INITIAL_STATE, B)]))
    inputs = system.inputs(chosen, InputDraw(generators(0, Stream.INPUTS, B), 10.0, T))
    signal = InputSignal.from_inputs(inputs, B)
    f = network() if learned else system.derivative(chosen)
    times = torch.linspace(0.0, T, 10 * int(T), dtype=torch.float64)
    start, sizes = torch.zeros(B, dtype=torch.float64), torch.full((B,), times.numel())
    tolerances = Tolerances(RTOL, ATOL)

    def ours():
        integrate(f, x0, start, sizes, times.repeat(B), signal, tolerances=tolerances)

    def theirs():
        with torch.no_grad():
            odeint(lambda t, x: f(t.expand(B), x, signal.values(t.expand(B))), x0, times, rtol=RTOL, atol=ATOL)

    seconds = {ours: [], theirs: []}
    for _ in range(7):
        for run, taken in seconds.items():
            begun = time.perf_counter()
            run()
            taken.append(time.perf_counter() - begun)
    return min(seconds[ours]), min(seconds[theirs])


def test_cost_is_no_worse_than_torchdiffeq():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ratios = {}
        for case in CASES:
            ours, theirs = contest(*case)
            ratios[case] = ours / theirs
            print(f"{case}: ours {1e3 * ours:.1f} ms, torchdiffeq {1e3 * theirs:.1f} ms, ratio {ratios[case]:.2f}")
    finally:
        torch.set_num_threads(threads)
    assert np.exp(np.mean(np.log(list(ratios.values())))) <= 1.0
    assert max(ratios.values()) <= 1.25, ratios  # timings on a shared machine scatter
