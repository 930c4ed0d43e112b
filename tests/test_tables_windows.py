"""Windows, rates and merged files: laws that hold whatever the numbers."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from snet_cli.data.derivatives import WINDOW_SIZES, local_rate
from snet_cli.data.merging import merge
from snet_cli.data.signals import FourierInputs, Inputs, Intersample, SampledInputs
from snet_cli.data.tables import import_tables
from snet_cli.data.trajectories import Trajectories
from snet_cli.data.windows import cut, find_windows
from snet_cli.errors import DataError


def recordings(
    sizes: tuple[int, ...], *, seed: int = 0, hold: Intersample = "zoh", regular: bool = True, **more: Any
) -> Trajectories:
    """Recordings of one state and one input on a clock three times as fast."""
    random = np.random.default_rng(seed)
    time, clock = [], []
    for number, size in enumerate(sizes):
        steps = np.full(size - 1, 0.1) if regular else random.uniform(0.02, 0.3, size - 1)
        time.append(5.0 * number + np.concatenate([[0.0], np.cumsum(steps)]))
        clock.append(np.linspace(time[-1][0], time[-1][-1], 3 * size))
    row_size = np.array(sizes, np.int64)
    outputs = random.normal(size=(sum(sizes), 1))
    sampled = SampledInputs(
        ("u",), 3 * row_size, np.concatenate(clock), random.normal(size=(3 * sum(sizes), 1)), (hold,)
    )
    ids = tuple(f"r{number}" for number in range(len(sizes)))
    return Trajectories(ids, row_size, np.concatenate(time), outputs, ("x",), Inputs(("u",), sampled), **more)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 40), min_size=1, max_size=4).map(tuple),
    length=st.floats(0.3, 2.0),
    stride=st.floats(0.1, 2.0),
    regular=st.booleans(),
    seed=st.integers(0, 99),
)
def test_windows_lie_within_one_recording(
    sizes: tuple[int, ...], length: float, stride: float, regular: bool, seed: int
) -> None:
    data = recordings(sizes, seed=seed, regular=regular)
    windows = find_windows(data, length, stride)
    tolerance = 0.01 * data.sampling_interval() + 1e-12
    offsets = data.offsets
    for owner, first, stop in zip(*windows, strict=True):
        assert offsets[owner] <= first < stop <= offsets[owner + 1]
        times = data.time[first:stop]
        assert times[-1] - times[0] <= length + tolerance
        assert times[0] + length <= data.end[owner] + tolerance  # none is cut short
        if stop < offsets[owner + 1]:
            assert data.time[stop] - times[0] > length  # none ends early
        since = times[0] - data.start[owner]
        before = data.time[first - 1] - data.start[owner] if first > offsets[owner] else -np.inf
        multiple = np.floor((since + tolerance) / stride) * stride
        assert before < multiple + tolerance  # the first sample at or after a multiple of the stride


@pytest.mark.parametrize("hold", ["zoh", "linear", "cubic"])
@pytest.mark.parametrize("regular", [True, False])
def test_inputs_inside_a_window_are_what_they_were(hold: Intersample, regular: bool) -> None:
    data = recordings((60, 45), hold=hold, regular=regular)
    pieces, _ = cut(data, 1.0, 0.7)
    owner = np.array([data.ids.index(name.split("@")[0]) for name in pieces.ids])
    for window in range(len(pieces)):
        time = np.linspace(pieces.start[window], pieces.end[window], 57)
        whole = data.inputs.at(np.full(57, owner[window]), time)
        again = pieces.inputs.at(np.full(57, window), time)
        np.testing.assert_allclose(again, whole, atol=1e-6 if hold == "cubic" else 1e-12)
    assert (pieces.inputs.sampled_start() <= pieces.start).all()
    assert (pieces.inputs.sampled_end() >= pieces.end).all()


def test_windows_keep_what_belongs_to_their_recording() -> None:
    data = recordings(
        (41, 12, 41),
        truth=np.zeros((94, 1)),
        x0=np.ones((3, 1)),
        split=np.array([0, 1, 2]),
        parameters={"m": np.array([1.0, 2.0, 3.0])},
    )
    pieces, notes = cut(data, 2.0, 2.0)
    assert pieces.ids == ("r0@0", "r0@2", "r2@0", "r2@2")
    assert pieces.row_size.tolist() == [21] * 4
    assert pieces.split is not None
    assert pieces.split.tolist() == [0, 0, 2, 2]
    assert pieces.parameters["m"].tolist() == [1, 1, 3, 3]
    assert pieces.x0 is not None
    np.testing.assert_array_equal(pieces.x0[:, 0], [1, np.nan, 1, np.nan])
    assert pieces.truth is not None
    assert pieces.truth.shape == pieces.outputs.shape
    assert notes == [
        "1 recording is shorter than the window of 2 and left out: 'r1'.",
        "12 of 94 samples lie in no window.",
    ]


def test_rates_of_cubics_are_exact_on_irregular_times_and_do_not_cross_recordings() -> None:
    random = np.random.default_rng(0)
    time = np.sort(random.uniform(0, 3, 200))
    row_size = np.array([120, 80])
    jump = np.repeat([0.0, 1e3], row_size)
    rate = local_rate(time, jump + 1e4 + time**3 - 2 * time, row_size)
    np.testing.assert_allclose(rate.values, 3 * time**2 - 2, atol=1e-6)


def test_rates_do_not_cross_a_gap() -> None:
    time: NDArray[np.float64] = np.concatenate([np.linspace(0, 1, 30), np.linspace(5, 6, 30)])
    values: NDArray[np.float64] = np.where(time < 3, time, 40 - 2 * time)
    rate = local_rate(time, values, np.array([60]))
    np.testing.assert_allclose(rate.values, np.where(time < 3, 1.0, -2.0), atol=1e-9)


def test_rates_exist_where_values_do() -> None:
    time = np.linspace(0, 2, 50)
    values = np.sin(time)
    values[[0, 7, 8, 30]] = np.nan
    rate = local_rate(time, values, np.array([50]))
    np.testing.assert_array_equal(np.isnan(rate.values), np.isnan(values))
    measured = np.isfinite(values)
    np.testing.assert_allclose(rate.values[measured], np.cos(time)[measured], atol=1e-4)


def test_more_noise_asks_for_wider_windows() -> None:
    random = np.random.default_rng(0)
    time = np.linspace(0, 20, 2000)
    clean = local_rate(time, np.sin(3 * time), np.array([2000]))
    noisy = local_rate(time, np.sin(3 * time) + 0.01 * random.normal(size=2000), np.array([2000]))
    assert clean.window == WINDOW_SIZES[0]
    assert noisy.window > 20
    assert float(np.sqrt(np.mean((noisy.values - 3 * np.cos(3 * time)) ** 2))) < 0.1


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5])
def test_short_recordings_have_the_rate_they_allow(size: int) -> None:
    time = 0.5 * np.linspace(0, 1, size)
    rate = local_rate(time, 3 * time, np.array([size])).values
    assert rate.shape == (size,)
    if size == 1:
        assert np.isnan(rate).all()
    else:
        np.testing.assert_allclose(rate, 3.0)


def fourier(trajectories: int, harmonics: int) -> Inputs:
    def ones(*shape: int) -> NDArray[np.float64]:
        return np.ones(shape)

    shape = (trajectories, 1, harmonics)
    return Inputs(("u",), None, FourierInputs(("u",), ones(trajectories, 1), ones(*shape), ones(*shape), ones(*shape)))


def test_merged_files_hold_all_trajectories() -> None:
    first, second = recordings((5, 6)), replace(recordings((7,), seed=1), split=np.array([2]), x0=np.ones((1, 1)))
    merged, notes = merge([first, second], ["a", "b"], ["p", "q", "r"])
    assert (merged.ids, merged.row_size.tolist()) == (("p", "q", "r"), [5, 6, 7])
    np.testing.assert_array_equal(merged.select([2]).outputs, second.outputs)
    assert merged.select([2]).inputs.sampled is not None
    assert merged.split is not None
    assert merged.split.tolist() == [0, 0, 2]
    assert merged.x0 is not None
    np.testing.assert_array_equal(merged.x0[:, 0], [np.nan, np.nan, 1.0])
    assert notes == []


def test_merged_series_continue_as_before() -> None:
    parts = [replace(recordings((4,) * n), inputs=fourier(n, h)) for n, h in ((2, 1), (1, 3))]
    merged, _ = merge(parts, ["a", "b"], ["p", "q", "r"])
    time = np.linspace(0, 9, 3)
    for row, part, own in ((0, 0, 0), (1, 0, 1), (2, 1, 0)):
        np.testing.assert_allclose(
            merged.inputs.at(np.full(3, row), time), parts[part].inputs.at(np.full(3, own), time)
        )


def test_systems_that_differ_in_a_number_become_constants() -> None:
    parts = [replace(recordings((4, 4)), system={"name": "vehicle", "m": m, "I": 1.0}) for m in (1.0, 2.0)]
    merged, notes = merge(parts, ["a", "b"], ["1", "2", "3", "4"])
    assert merged.system == {"name": "vehicle", "I": 1.0}
    assert merged.parameters["m"].tolist() == [1, 1, 2, 2]
    assert notes == ["'m' of the system differs between the files and is kept for each trajectory."]


def test_what_would_be_false_for_some_is_dropped_with_a_note() -> None:
    first = replace(recordings((4,)), truth=np.zeros((4, 1)), noise_std={"x": 0.1}, system={"name": "vehicle"})
    merged, notes = merge([first, recordings((4,))], ["a", "b"], ["p", "q"])
    assert (merged.truth, merged.noise_std, merged.system) == (None, {}, None)
    assert notes == [
        "only some of the files hold the noise-free truth; it is not kept.",
        "the files state different noise levels; none is kept.",
        "the files come from different systems; the name of none is kept.",
    ]


def test_files_of_other_channels_units_or_holds_are_refused() -> None:
    first = recordings((4,))
    others = {
        "the units are {'x': 'm'}, but {} in a": replace(first, units={"x": "m"}),
        "the outputs are .'z',., but .'x',. in a": replace(first, output_names=("z",)),
        "the sampled inputs are": recordings((4,), hold="linear"),
        "the time unit is h": replace(first, time_unit="h"),
    }
    for message, other in others.items():
        with pytest.raises(DataError, match=message):
            merge([first, other], ["a", "b"], ["p", "q"])
    with pytest.raises(DataError, match="the files state different constants: 'm' in some only"):
        merge([first, replace(first, parameters={"m": np.ones(1)})], ["a", "b"], ["p", "q"])


def test_trajectory_files_are_merged_thinned_cut_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"a.h5": recordings((41, 41)), "b.h5": recordings((61,), seed=1)}
    for name in files:
        (tmp_path / name).write_bytes(b"\x89HDF\r\n\x1a\n")
    reader = ModuleType("trajectory_file")
    reader.__dict__["load_trajectories"] = lambda path, max_bytes: files[path.name]
    monkeypatch.setitem(sys.modules, "snet_cli.data.trajectory_file", reader)
    paths = [tmp_path / name for name in files]
    data, notes = import_tables(paths, split="test=b-r0", window=2.0, decimate=2, init_window=3)
    assert data.ids == ("a-r0@0", "a-r0@2", "r1@0", "r1@2", "b-r0@0", "b-r0@2", "b-r0@4")
    assert data.row_size.tolist() == [11] * 7
    assert data.split is not None
    assert data.split.tolist() == [0] * 4 + [2] * 3
    assert data.init_window is not None
    assert data.init_window.tolist() == [3] * 7
    assert notes == ()
