"""`simulate`: the truth hangs on the seed alone; sampling, gaps and noise are views of it."""

import numpy as np
import pytest

from snet_cli.errors import NumericalError, UsageError
from snet_cli.simulation.simulate import simulate
from snet_cli.spectral.legendre import gauss_lobatto


def vehicle(**options):
    return simulate(
        "vehicle", options.pop("parameters", {}), **{"trajectories": 4, "samples": 21} | options
    ).trajectories


def grid(data):
    return data.truth.reshape(len(data), -1, data.truth.shape[1])


def test_defaults_are_the_papers_setting():
    simulation = simulate("vehicle")
    data = simulation.trajectories
    assert len(data) == 100
    assert simulation.outcomes == {"ok": 100}
    assert simulation.notes == ()
    assert data.row_size.tolist() == [100] * 100
    np.testing.assert_array_equal(data.time[:100], np.linspace(0, 10, 100))
    assert data.output_names == data.state_names == ("x", "y", "phi", "vx", "vy", "omega")
    assert data.inputs.names == ("Fx", "tau")
    assert (np.abs(data.x0) <= 1).all()
    assert 0.9 < np.abs(data.x0).max()
    np.testing.assert_array_equal(data.outputs, data.truth)
    np.testing.assert_array_equal(data.truth[data.offsets[:-1]], data.x0)
    assert data.system == {
        "name": "vehicle", "m": 1.0, "I": 1.0, "k_d": 1.0, "harmonics": 1, "amplitude": 1.0, "input_horizon": 10.0,
    }  # fmt: skip
    assert data.units["phi"] == "rad"
    assert data.noise_std == {}


@pytest.mark.slow
def test_one_seed_is_one_truth():
    plain = vehicle()
    for options in (
        {"trajectories": 9},
        {"noise": 1.0, "missing": 0.5, "unknown_x0": True},
    ):
        other = vehicle(**options)
        # some processors sum products of matrices in another order where there are more rows: the last digits
        np.testing.assert_allclose(grid(other)[:4], grid(plain), rtol=0, atol=1e-12 if len(other) > 4 else 0.0)
        np.testing.assert_array_equal(other.inputs.fourier.cos[:4], plain.inputs.fourier.cos)
        np.testing.assert_array_equal(other.time[:21], plain.time[:21])
    np.testing.assert_allclose(grid(vehicle(samples=11)), grid(plain)[:, ::2], atol=1e-12)
    np.testing.assert_allclose(grid(vehicle(horizon=40.0, samples=81))[:, :21], grid(plain), atol=1e-9)
    np.testing.assert_array_equal(grid(vehicle(keep=0.5))[:, [0, -1]], grid(plain)[:, [0, -1]])
    assert np.abs(grid(vehicle(seed=1)) - grid(plain)).max() > 0.1


def test_sampled_inputs_do_not_depend_on_the_horizon():
    short, long = (
        simulate("cascaded-tanks", trajectories=3, horizon=h, samples=11).trajectories for h in (410.0, 820.0)
    )
    for b in range(3):
        a, c = (data.inputs.select([b]).sampled for data in (short, long))
        assert a.time[-1] >= 410.0
        np.testing.assert_array_equal(a.values, c.values[: a.values.size])
    np.testing.assert_allclose(grid(short)[:, -1], grid(long)[:, 5], atol=1e-8)


@pytest.mark.parametrize("sampling", ["uniform", "random", "lobatto"])
def test_times_rise_strictly_between_both_ends(sampling):
    data = vehicle(sampling=sampling, horizon=5.0)
    times = data.time.reshape(4, 21)
    assert (np.diff(times, axis=1) > 0).all()
    assert (times[:, 0] == 0.0).all()
    assert (times[:, -1] == 5.0).all()
    if sampling == "lobatto":
        np.testing.assert_allclose(times[0], 2.5 * (1 + gauss_lobatto(20).nodes), atol=1e-14)
    if sampling == "random":
        assert np.abs(times[0] - times[1]).max() > 0.01


@pytest.mark.slow
def test_keep_thins_evenly_and_at_random_where_times_are():
    full = np.linspace(0, 10, 100)
    for keep, count in ((0.5, 50), (0.25, 25), (0.001, 2), (1.0, 100)):
        data = vehicle(samples=100, keep=keep)
        kept = data.time[: data.row_size[0]]
        assert kept.size == count
        assert np.isin(kept, full).all()
        assert (kept[[0, -1]] == full[[0, -1]]).all()
        if count > 2:
            assert np.diff(kept).max() <= 1.0 / keep * 10 / 99 + 10 / 99 + 1e-9
    every, some = vehicle(sampling="random"), vehicle(sampling="random", keep=0.4)
    assert some.row_size.tolist() == [8] * 4
    for b in range(4):
        rows, all_rows = (d.time.reshape(4, -1)[b] for d in (some, every))
        assert np.isin(rows, all_rows).all()
        assert (rows[[0, -1]] == all_rows[[0, -1]]).all()


def test_noise_has_the_stated_strength_in_every_channel_and_survives_thinning():
    noisy = vehicle(trajectories=50, samples=100, noise=0.2)
    deviation = (noisy.outputs - noisy.truth).std(0)
    np.testing.assert_allclose(deviation, 0.2, rtol=0.05)  # 5 000 draws: 1 % each
    assert noisy.noise_std == dict.fromkeys(noisy.output_names, 0.2)
    thin = vehicle(trajectories=50, samples=100, noise=0.2, keep=0.5)
    shared = np.isin(noisy.time[:100], thin.time[:50])
    np.testing.assert_array_equal(thin.outputs[:50], noisy.outputs[:100][shared])


def test_missing_drops_single_values_with_noise_untouched():
    whole, holed = vehicle(samples=100, noise=0.1), vehicle(samples=100, noise=0.1, missing=0.3)
    lost = np.isnan(holed.outputs)
    assert 0.25 < lost.mean() < 0.35
    np.testing.assert_array_equal(holed.outputs[~lost], whole.outputs[~lost])
    assert np.isfinite(holed.truth).all()


def test_unknown_x0_is_nan():
    assert np.isnan(vehicle(unknown_x0=True).x0).all()


def test_failures_are_counted_and_their_samples_missing():
    simulation = simulate("van-der-pol", {"mu": -1.0}, trajectories=20, horizon=10.0, samples=21)
    failed = simulation.trajectories.row_size.sum()
    assert simulation.outcomes["ok"] < 20
    assert sum(simulation.outcomes.values()) == 20
    assert "trajectories ended before the horizon" in simulation.notes[0]
    gone = np.isnan(simulation.trajectories.truth).all(1)
    assert 0 < gone.sum() < failed
    np.testing.assert_array_equal(np.isnan(simulation.trajectories.outputs).all(1), gone)
    ended = gone.reshape(20, 21)
    assert (np.diff(ended.astype(int), axis=1) >= 0).all()  # nothing after a failure
    assert np.isfinite(simulation.trajectories.time).all()


def test_when_all_fail_it_is_an_error():
    with pytest.raises(NumericalError, match=r"none of the 3 trajectories of duffing reached the horizon \(3 "):
        simulate("duffing", {"beta": -1.0}, trajectories=3, horizon=50.0)


def test_agents_without_wrapping_end_in_time():
    simulation = simulate("multi-agent", {"wrap": False}, trajectories=3, horizon=5.0, samples=6)
    assert sum(simulation.outcomes.values()) == 3
    assert simulation.trajectories.system["wrap"] is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 1}, "samples = 1, expected at least 2"),
        ({"horizon": 0.0}, "horizon = 0, expected positive"),
        ({"keep": 0.0}, r"keep = 0, expected in \(0, 1\]"),
        ({"noise": -1.0}, "noise = -1, expected at least 0"),
        ({"missing": 1.0}, r"missing = 1, expected in \[0, 1\)"),
        ({"seed": -1}, "seed = -1, expected at least 0"),
        ({"sampling": "lobatto", "samples": 102}, "at most 101 samples"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        vehicle(**options)
