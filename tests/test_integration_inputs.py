"""u(t) in torch is u(t) of the files, and breaks are where it jumps."""

import numpy as np
import pytest
import torch

from snet_cli.data.signals import FourierInputs, Inputs, SampledInputs
from snet_cli.integration import InputSignal
from snet_cli.integration.ragged_search import RaggedSearch

SIZES = np.array([5, 1, 40, 2])


def sampled(kinds, rng):
    time = np.concatenate([np.sort(rng.uniform(0, 10, size)) for size in SIZES])
    names = tuple(f"u{i}" for i in range(len(kinds)))
    return SampledInputs(names, SIZES, time, rng.normal(size=(SIZES.sum(), len(kinds))), tuple(kinds))


def fourier(rng, names=("w", "z")):
    shape = (SIZES.size, len(names), 3)
    return FourierInputs(names, rng.normal(size=shape[:2]), *(rng.normal(size=shape) for _ in range(3)))


@pytest.mark.parametrize("clock", ["even", "random", "clustered", "equal"])
def test_search_counts_as_numpy_does(clock):
    rng = np.random.default_rng(1)
    sizes = np.array([7, 0, 1, 100, 2])
    make = {
        "even": lambda n: np.arange(n) * 0.1,
        "random": lambda n: np.sort(rng.uniform(-5, 5, n)),
        "clustered": lambda n: np.sort(rng.uniform(0, 1, n) ** 12),
        "equal": lambda n: np.full(n, 2.0),
    }[clock]
    lists = [make(n) for n in sizes]
    search = RaggedSearch.build(np.concatenate(lists), sizes)
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    queries = np.stack(
        [np.concatenate([rng.uniform(-6, 12, 20), (v if v.size else np.zeros(1))[[0, -1]]]) for v in lists]
    )
    for inclusive, side in ((True, "right"), (False, "left")):
        found = search.upto(torch.tensor(queries.T), inclusive=inclusive).T.numpy()
        for row, values in enumerate(lists):
            np.testing.assert_array_equal(found[row] - offsets[row], np.searchsorted(values, queries[row], side))


@pytest.mark.parametrize("kinds", [["zoh"], ["linear"], ["cubic"], ["zoh", "cubic", "linear"]])
@pytest.mark.parametrize("side", ["left", "right"])
def test_values_are_those_of_the_data(kinds, side):
    rng = np.random.default_rng(2)
    inputs = Inputs(names=tuple(f"u{i}" for i in range(len(kinds))), sampled=sampled(kinds, rng))
    signal = InputSignal.from_inputs(inputs, SIZES.size)
    trajectory = rng.integers(0, SIZES.size, 300)
    knots = inputs.sampled.time
    offsets = np.concatenate([[0], np.cumsum(SIZES)])
    time = np.array([rng.uniform(knots[offsets[b]], knots[offsets[b + 1] - 1]) for b in trajectory])
    at_knot = rng.random(300) < 0.3
    time[at_knot] = [rng.choice(knots[offsets[b] : offsets[b + 1]]) for b in trajectory[at_knot]]
    found = signal.at(torch.tensor(trajectory), torch.tensor(time), side)
    np.testing.assert_allclose(found, inputs.at(trajectory, time, side), rtol=1e-12, atol=1e-12)


def test_both_kinds_keep_the_order_of_names_and_constants_follow():
    rng = np.random.default_rng(3)
    inputs = Inputs(("w", "u0", "z", "u1"), sampled(["zoh", "linear"], rng), fourier(rng))
    constants = torch.tensor(rng.normal(size=(SIZES.size, 2)))
    signal = InputSignal.from_inputs(inputs, SIZES.size, constants)
    rows, time = np.array([2, 0, 2]), np.array([5.0, 4.0, 6.0])
    found = signal.at(torch.tensor(rows), torch.tensor(time))
    np.testing.assert_allclose(found[:, :4], inputs.at(rows, time), atol=1e-13)
    np.testing.assert_array_equal(found[:, 4:], constants[rows])


def test_no_input_has_no_channels_and_no_end():
    signal = InputSignal.from_inputs(Inputs.none(), 3)
    assert signal.values(torch.zeros(5, 3)).shape == (5, 3, 0)
    assert torch.isinf(signal.end).all()
    assert torch.isinf(signal.breaks_after(torch.zeros(3))).all()


def test_breaks_are_jumps_and_kinks_but_no_smooth_knots():
    time = np.arange(6.0)
    held = np.array([1.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    line = np.array([0.0, 1.0, 2.0, 3.0, 2.0, 1.0])
    cases = {("zoh", 0): [0, 2, 5], ("linear", 1): [0, 3, 5], ("cubic", 1): [0, 5]}
    for (kind, which), expected in cases.items():
        values = (held, line)[which][:, None]
        inputs = Inputs(("u",), SampledInputs(("u",), np.array([6]), time, values, (kind,)))
        signal = InputSignal.from_inputs(inputs, 1)
        found, t = [], torch.tensor([-1.0], dtype=torch.float64)
        while torch.isfinite(t):
            t = signal.next_break(torch.tensor([0]), t)
            found.append(float(t))
        assert found[:-1] == expected, kind


def test_values_hold_outside_the_knots():
    inputs = Inputs(
        ("u",), SampledInputs(("u",), np.array([3]), np.arange(3.0), np.array([[1.0], [2.0], [5.0]]), ("linear",))
    )
    signal = InputSignal.from_inputs(inputs, 1)
    for side in ("left", "right"):
        values = signal.values(torch.tensor([[-1.0], [0.0], [2.0], [3.0]], dtype=torch.float64), side)
        assert values[:, 0, 0].tolist() == [1.0, 1.0, 5.0, 5.0]
