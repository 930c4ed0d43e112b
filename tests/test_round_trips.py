"""Round trips of drawn content: u(t) through files, numbers through tables, options through every place for them.

Files of drawn trajectories and checkpoints, CSV and YAML come back in the tests of those modules.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from snet_cli.config.scalars import dump, flow
from snet_cli.data.signals import INTERSAMPLE, FourierInputs, Inputs, SampledInputs
from snet_cli.data.tables import import_tables
from snet_cli.data.trajectories import Trajectories
from snet_cli.data.trajectory_file import decode_trajectories, encode_trajectories
from tests.command import Snet
from tests.test_tables_arrays import FORMATS

DEGREE = {"zoh": 0, "linear": 1, "cubic": 3}

drawn = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


# signals


@st.composite
def driven_trajectories(draw: st.DrawFn) -> Trajectories:
    """Trajectories with inputs of every kind, each on a clock of its own, names in any order."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count, scale = draw(st.integers(1, 3)), draw(st.sampled_from([1e-9, 1.0, 1e9]))
    holds = tuple(draw(st.lists(st.sampled_from(INTERSAMPLE), max_size=4)))
    waves = draw(st.integers(0 if holds else 1, 2))
    knots = [np.cumsum(rng.uniform(0.1, 1.0, draw(st.integers(1, 7)))) - 5.0 for _ in range(count)]
    held, closed = tuple(f"u{k}" for k in range(len(holds))), tuple(f"w{k}" for k in range(waves))
    sampled = fourier = None
    if held:
        row_size = np.array([one.size for one in knots])
        values = scale * rng.normal(size=(row_size.sum(), len(held)))
        sampled = SampledInputs(held, row_size, np.concatenate(knots), values, holds)
    if closed:
        shape = (count, waves, draw(st.integers(1, 3)))
        series = [scale * rng.normal(size=shape) for _ in range(2)]
        fourier = FourierInputs(closed, scale * rng.normal(size=shape[:2]), rng.uniform(0, 9, shape), *series)
    names = tuple(draw(st.permutations(held + closed)))
    starts = [(one[0], one[-1] + 1e-3) for one in knots]
    return Trajectories(
        ids=tuple(f"r{k}" for k in range(count)),
        row_size=np.full(count, 2),
        time=np.concatenate(starts),
        outputs=rng.normal(size=(2 * count, 1)),
        output_names=("x",),
        inputs=Inputs(names, sampled, fourier),
    )


@settings(drawn, max_examples=25)
@given(data=driven_trajectories(), seed=st.integers(0, 99))
def test_every_signal_has_the_same_values_after_a_file(data: Trajectories, seed: int) -> None:
    """At any time, on either side of every knot, to the last bit; of chosen trajectories alone as well."""
    loaded = decode_trajectories(encode_trajectories(data), "file").trajectories.inputs
    rng = np.random.default_rng(seed)
    trajectory = rng.integers(0, len(data), 40)
    time = rng.uniform(-6.0, 3.0, 40)
    if data.inputs.sampled is not None:
        knots, size = data.inputs.sampled.time, data.inputs.sampled.row_size
        trajectory = np.concatenate([trajectory, np.repeat(np.arange(len(data)), size)])
        time = np.concatenate([time, knots])
    chosen = rng.permutation(len(data))
    places = np.argsort(chosen)[trajectory]
    for side in ("left", "right"):
        wanted = data.inputs.at(trajectory, time, side)
        np.testing.assert_array_equal(loaded.at(trajectory, time, side), wanted)
        np.testing.assert_array_equal(loaded.select(chosen).at(places, time, side), wanted)


@settings(drawn, max_examples=40)
@given(
    hold=st.sampled_from(INTERSAMPLE),
    steps=st.lists(st.floats(0.1, 3.0), min_size=4, max_size=12),
    coefficients=st.lists(st.floats(-10.0, 10.0), min_size=4, max_size=4),
    fractions=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8),
)
def test_a_signal_is_exact_for_polynomials_of_its_degree(
    hold: Any, steps: list[float], coefficients: list[float], fractions: list[float]
) -> None:
    """Sampled and put together again, a polynomial of the hold's degree is what it was (the spline is not-a-knot)."""
    truth = np.polynomial.Polynomial(coefficients[: DEGREE[hold] + 1])
    knots = np.cumsum(steps)
    signal = SampledInputs(("u",), np.array([knots.size]), knots, truth(knots)[:, None], (hold,))
    time = knots[0] + np.array(fractions) * (knots[-1] - knots[0])
    found = Inputs(("u",), signal).at(np.zeros(time.size, np.int64), time)[:, 0]
    size = np.abs(coefficients[: DEGREE[hold] + 1]) @ knots[-1] ** np.arange(DEGREE[hold] + 1)
    # the spline's slopes solve a system whose condition grows with the ratio of neighbouring steps, at most 30
    np.testing.assert_allclose(found, truth(time), rtol=0, atol=1e-11 * size + 1e-300)


# tables


@settings(drawn, max_examples=20)
@given(
    values=hnp.arrays(
        np.float64, st.tuples(st.integers(4, 8), st.integers(1, 3)), elements=st.floats(-1e99, 1e99, allow_nan=False)
    ),
    steps=hnp.arrays(np.float64, 8, elements=st.floats(1e-3, 1e3)),
    name=st.sampled_from(sorted(FORMATS)),
)
def test_numbers_come_back_from_arrays_of_every_kind(
    tmp_path: Path, values: np.ndarray, steps: np.ndarray, name: str
) -> None:
    """NPZ and both kinds of MAT; no matrix is square with the times, whose direction would be a guess."""
    time = np.cumsum(steps)[: len(values)]
    FORMATS[name](tmp_path / name, t=time, x=values)
    data, _ = import_tables([tmp_path / name], states="x=" + ",".join("abc"[: values.shape[1]]))
    np.testing.assert_array_equal(data.time, time)
    np.testing.assert_array_equal(data.outputs, values)


# arguments

POSITIVE = st.floats(1e-300, 1e300)

OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "method": st.sampled_from(["auto", "delta", "alpha", "joint", "adj-dopri5", "anode"]),
    "order": st.just("auto") | st.integers(2, 100),
    "elements": st.just("auto") | st.integers(1, 100_000),
    "iterations": st.integers(1, 10**12),
    "tolerance": st.just(0.0) | POSITIVE,
    "max_time": POSITIVE,
    "gamma": st.just("auto") | POSITIVE,
    "validation": st.floats(0.01, 0.99) | st.sampled_from(["held out.h5", "-v.h5", "é\n.h5", "#", "a: b", "'"]),
    "x0": st.sampled_from(["known", "free"]),
    "seed": st.integers(0, 2**63 - 1),
    "threads": st.integers(1, 1024),
    "dtype": st.sampled_from(["float64", "float32"]),
    "max_bytes": st.integers(1, 2**62),
    "model": st.fixed_dictionaries({"name": st.just("mlp"), "hidden": st.lists(st.integers(1, 4096), min_size=1)}),
    "theta_step": st.fixed_dictionaries({"name": st.just("adam"), "rate": POSITIVE, "steps": st.integers(1, 99)}),
}

WITHOUT_FLAG = ("model", "theta_step", "x0")
"""Trees, and an option that has no flag of its own."""


def _assigned(key: str, value: Any) -> list[str]:
    """`--set` words for one option."""
    if isinstance(value, dict):
        return [word for name, item in value.items() for word in ("--set", f"{key}.{name}={flow(item)}")]
    return ["--set", f"{key}={flow(value)}"]


def _flag(key: str, value: Any) -> list[str]:
    return [
        f"--{key.replace('_', '-')}={value!r}" if isinstance(value, float) else f"--{key.replace('_', '-')}={value}"
    ]


@settings(drawn, max_examples=12)
@given(tree=st.fixed_dictionaries({}, optional=OPTIONS), data=st.data())
def test_arguments_mean_the_same_wherever_they_are_written(
    snet: Snet, monkeypatch: pytest.MonkeyPatch, tree: dict[str, Any], data: st.DataObject
) -> None:
    """As flags, after `--set`, in YAML, in variables, or some of each; what is shown can be read again."""
    words, written = [], {}
    with monkeypatch.context() as patched:
        for key, value in tree.items():
            place = data.draw(st.sampled_from(["flag", "set", "yaml", "variable"]), label=key)
            if place == "yaml":
                written[key] = value
            elif place == "set" or key in WITHOUT_FLAG:
                words += _assigned(key, value)
            elif place == "flag":
                words += _flag(key, value)
            else:
                patched.setenv(f"SNET_{key.upper()}", _flag(key, value)[0].partition("=")[2])
        Path("some.yaml").write_text(dump(written), "utf-8")
        shown = snet("fit", "--show-config", "-c", "some.yaml", *words)
        as_json = snet("fit", "--show-config", "--json", "-c", "some.yaml", *words).json
    assert shown.code == 0, shown.err
    for key, value in tree.items():
        assert as_json[key] == value or {**as_json[key], **value} == as_json[key], (key, as_json[key])
    Path("shown.yaml").write_text(shown.out, "utf-8")
    assert snet("fit", "--show-config", "-c", "shown.yaml").out == shown.out


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=9)


@settings(drawn, max_examples=15)
@given(time=TEXT, by=TEXT | st.sampled_from(["012", "1e3", "null", "-o", "~", "=", "a: b"]), window=POSITIVE)
def test_names_of_columns_are_texts_whatever_they_look_like(snet: Snet, time: str, by: str, window: float) -> None:
    ran = snet("import", "--show-config", "--json", f"--time={time}", f"--by={by}", f"--window={window!r}", "a.csv")
    assert (ran.json["time"], ran.json["by"], ran.json["window"]) == (time, by, window)
    assert math.isfinite(ran.json["window"])
    Path("shown.yaml").write_text(
        snet("import", "--show-config", f"--time={time}", f"--by={by}", "a.csv").out, "utf-8", newline=""
    )
    again = snet("import", "--show-config", "--json", "-c", "shown.yaml", "a.csv").json
    assert (again["time"], again["by"]) == (time, by)
