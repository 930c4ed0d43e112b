"""What an import makes of tables: channels, order, clocks, units, angles, splits."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snet_cli.data.tables import Imported, import_tables, unique_ids
from snet_cli.errors import DataError, UsageError

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
SAMPLES = Path(__file__).parent.parent / "sample_data"


def imported(folder: Path, text: str, name: str = "run.csv", **options: Any) -> Imported:
    path = folder / name
    path.write_bytes(text.encode())
    options.setdefault("states", "x")
    return import_tables([path], **options)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(
            st.floats(-1e6, 1e6),
            st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)),
            st.floats(-1e3, 1e3),
        ),
        min_size=3,
        max_size=20,
        unique_by=lambda row: row[0] + 0.0,
    ),
    delimiter=st.sampled_from([",", ";", "\t"]),
    newline=st.sampled_from(["\n", "\r\n"]),
    quoted=st.booleans(),
    bom=st.booleans(),
    comma=st.booleans(),
)
def test_csv_round_trip(
    tmp_path: Path,
    rows: list[tuple[float, float | None, float]],
    delimiter: str,
    newline: str,
    quoted: bool,
    bom: bool,
    comma: bool,
) -> None:
    rows[0], rows[1] = (rows[0][0], 1.0, rows[0][2]), (rows[1][0], 2.0, rows[1][2])

    def cell(value: float | None) -> str:
        text = "" if value is None else repr(value)
        text = text.replace(".", ",") if comma and delimiter != "," else text
        return f'"{text}"' if quoted else text

    lines = ["t [s]", "x (m)", "u"], *([cell(value) for value in row] for row in rows)
    text = "\ufeff" * bom + "".join(delimiter.join(line) + newline for line in lines)
    data, notes = imported(tmp_path, text, inputs="u")
    ordered = sorted(rows)
    measured = [row for row in ordered if row[1] is not None]
    np.testing.assert_array_equal(data.time, [row[0] for row in measured])
    np.testing.assert_array_equal(data.outputs[:, 0], [row[1] for row in measured])
    assert data.inputs.sampled is not None
    np.testing.assert_array_equal(data.inputs.sampled.time, [row[0] for row in ordered])
    np.testing.assert_array_equal(data.inputs.sampled.values[:, 0], [row[2] for row in ordered])
    assert (data.units["x"], data.time_unit) == ("m", "s")
    assert any("sorted" in note for note in notes) == (ordered != rows)


def test_both_csv_parsers_give_the_same_numbers(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    body = "".join(f"{k},{v!r},\n" for k, v in enumerate(random.normal(size=200).tolist()))
    fast = imported(tmp_path, "t,x,y\n" + body).trajectories
    grouped = imported(tmp_path, "t,x,y\n" + body.replace(",\n", ",a_1\n"), by="y").trajectories
    np.testing.assert_array_equal(fast.outputs, grouped.outputs)
    slow = imported(tmp_path, "# logger 7\n\nt,x,y\n" + body + "# the end\n,,\n").trajectories
    np.testing.assert_array_equal(fast.outputs, slow.outputs)
    np.testing.assert_array_equal(fast.time, slow.time)


def test_missing_words_are_missing_samples(tmp_path: Path) -> None:
    data, _ = imported(tmp_path, "t,x,y\n0,1,NA\n1,NaN,2\n2,3,null\n3,n/a,5\n", states="x,y")
    np.testing.assert_array_equal(data.outputs, [[1, np.nan], [np.nan, 2], [3, np.nan], [np.nan, 5]])


def test_header_that_numpy_writes_as_a_comment(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "run.csv", [[0, 1], [1, 2]], delimiter=",", header="t,x")
    assert import_tables([tmp_path / "run.csv"], states="x").trajectories.outputs[:, 0].tolist() == [1, 2]


def test_names_units_and_renames(tmp_path: Path) -> None:
    data, _ = imported(
        tmp_path,
        "time_ms,v/t [m/s],Größe (kg),F[N]\n0,1,2,3\n1,2,4,3\n2,5,4,1\n",
        states="speed=v/t,Größe",
        inputs="force=F",
        units="Größe=g",
    )
    assert data.output_names == data.state_names == ("speed", "Größe")
    assert data.time_unit == "ms"
    assert dict(data.units) == {"speed": "m/s", "Größe": "g", "force": "N"}


def test_one_recording_per_value_of_a_column(tmp_path: Path) -> None:
    text = "t,x,run\n0,1,b 1\n0,10,a\n1,20,a\n1,2,b 1\n2,3,b 1\n"
    data, _ = imported(tmp_path, text, by="run")
    assert data.ids == ("b 1", "a")
    assert data.row_size.tolist() == [3, 2]
    assert data.outputs[:, 0].tolist() == [1, 2, 3, 10, 20]


def test_ids_are_unique_and_fit_the_file() -> None:
    assert unique_ids(["1", "1", "2"], ["a-1", "b-1", "a-2"]) == ("a-1", "b-1", "2")
    assert unique_ids(["run", "run"], ["run", "run"]) == ("run", "run-2")
    assert unique_ids(["a/b\n"], ["a/b\n"]) == ("a_b_",)
    long = unique_ids(["ü" * 80] * 3, ["ü" * 80] * 3)
    assert len(set(long)) == 3
    assert all(len(name.encode()) <= 64 for name in long)


def test_inputs_get_one_clock_without_holes(tmp_path: Path) -> None:
    text = "t,x,a,b\n0,1,,5\n1,2,7,\n2,3,,\n3,4,8,9\n4,5,,\n"
    data, notes = imported(tmp_path, text, inputs="a,b", hold="a=zoh,b=linear")
    sampled = data.inputs.sampled
    assert sampled is not None
    assert sampled.time.tolist() == [0, 1, 3, 4]  # row 2 holds no input, the last one ends the clock
    assert sampled.values[:, 0].tolist() == [7, 7, 8, 8]
    assert sampled.values[:, 1] == pytest.approx([5, 5 + 4 / 3, 9, 9])
    assert sampled.intersample == ("zoh", "linear")
    assert any(note.startswith("filled 2 missing input values in 1 recording:") for note in notes)


def test_rows_with_inputs_only_leave_the_outputs_clock(tmp_path: Path) -> None:
    data, notes = imported(tmp_path, "t,x,u\n0,1,0\n1,,1\n2,3,2\n3,,3\n", inputs="u")
    assert data.time.tolist() == [0, 2]
    assert data.inputs.sampled is not None
    assert data.inputs.sampled.time.tolist() == [0, 1, 2, 3]
    assert any(note.startswith("2 rows without any state value") for note in notes)


def test_angles_are_unwrapped_within_a_recording_and_across_gaps(tmp_path: Path) -> None:
    turned = np.linspace(0, 1000, 60)
    wrapped = np.mod(turned + 180, 360) - 180
    cells = ["" if k in (10, 11) else f"{v!r}" for k, v in enumerate(wrapped.tolist())]
    one = "".join(f"{k},{c},1\n" for k, c in enumerate(cells))
    two = "".join(f"{k},{c},2\n" for k, c in enumerate(cells[5:]))
    data, _ = imported(tmp_path, "t,yaw [deg],run\n" + one + two, states="yaw", by="run", angles="yaw")
    assert data.units["yaw"] == "rad"
    first = data.outputs[: data.row_size[0], 0]
    expected = np.deg2rad(turned)[[k for k in range(60) if k not in (10, 11)]]
    np.testing.assert_allclose(first, expected, atol=1e-9)
    start = np.deg2rad(wrapped[5])
    np.testing.assert_allclose(data.outputs[data.row_size[0], 0], start, atol=1e-12)


def test_constant_and_unmeasured_channels_are_mentioned(tmp_path: Path) -> None:
    text = "t,x,y,u,run\n0,1,1,2,a\n1,1,2,2,a\n0,1,,2,b\n1,1,,2,b\n"
    _, notes = imported(tmp_path, text, states="x,y", inputs="u", by="run")
    assert notes == (
        "'x' is constant (1): there is nothing to learn about it.",
        "'y' was not measured in 'b'.",
        "the input 'u' is constant (2): its effect cannot be learned.",
    )


def test_decimation_thins_outputs_only(tmp_path: Path) -> None:
    rows = "".join(f"{k},{k},{-k}\n" for k in range(10))
    data, _ = imported(tmp_path, "t,x,u\n" + rows, inputs="u", decimate=4)
    assert data.time.tolist() == [0, 4, 8]
    assert data.inputs.sampled is not None
    assert data.inputs.sampled.time.tolist() == list(range(10))


def test_split_by_id_pattern_and_position(tmp_path: Path) -> None:
    paths = []
    for name in ("a", "b", "v_1", "v_2", "7"):
        paths.append(tmp_path / f"{name}.csv")
        paths[-1].write_text("t,x\n0,1\n1,2\n")
    data, notes = import_tables(paths, states="x", split="valid=v_*,test=1-2")
    assert data.split is not None
    assert data.split.tolist() == [2, 2, 1, 1, 0]
    assert not any("--split" in note for note in notes)
    data, notes = import_tables(paths, states="x", split="test=5,valid=a")
    assert data.split is not None
    assert data.split.tolist() == [1, 0, 0, 0, 2]
    assert "--split: 5 are positions: '7'." in notes


def test_derived_rate_is_a_state_with_a_unit(tmp_path: Path) -> None:
    rows = "".join(f"{t!r},{t**3 - t!r}\n" for t in np.linspace(0, 2, 30).tolist())
    data, notes = imported(tmp_path, "t,q [rad]\n" + rows, states="q", derive="v=d(q)")
    assert data.output_names == data.state_names == ("q", "v")
    assert data.units["v"] == "rad/s"
    np.testing.assert_allclose(data.outputs[:, 1], 3 * data.time**2 - 1, atol=1e-9)
    assert any("slope of cubics" in note for note in notes)


def test_init_window(tmp_path: Path) -> None:
    data, _ = imported(tmp_path, "t,x\n0,1\n1,2\n2,3\n", init_window=2)
    assert data.init_window is not None
    assert data.init_window.tolist() == [2]
    with pytest.raises(DataError, match="'run' has 3 samples: an init window of 3 leaves none to score"):
        imported(tmp_path, "t,x\n0,1\n1,2\n2,3\n", init_window=3)


def test_wide_table_is_quick(tmp_path: Path) -> None:
    names = ",".join(["t", *(f"c{k}" for k in range(100_000))])
    row = ",1.5" * 100_000
    data, _ = imported(tmp_path, f"{names}\n0{row}\n1{row}\n", states="c99999")
    assert data.outputs.tolist() == [[1.5], [1.5]]
    with pytest.raises(DataError, match=r"Did you mean 'c\d+'\? It has 't', 'c0'") as error:
        imported(tmp_path, f"{names}\n0{row}\n1{row}\n", states="cc9999")
    assert len(str(error.value)) < 400


def test_samples_are_what_their_generator_writes(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("sample_recordings", Path(__file__).parent / "sample_recordings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write(tmp_path)
    options: dict[str, Any] = {"states": "angle,rate", "inputs": "torque", "angles": "angle"}
    data, notes = import_tables(sorted(SAMPLES.glob("recording_*.csv")), **options)
    made, _ = import_tables(sorted(tmp_path.glob("recording_*.csv")), **options)
    np.testing.assert_array_equal(data.time, made.time)
    np.testing.assert_allclose(data.outputs, made.outputs, atol=2e-4)  # the last digit written
    assert data.ids == ("recording_a", "recording_b")
    assert dict(data.units) == {"angle": "rad", "rate": "rad/s", "torque": "N m"}
    assert "sorted the rows of 2 recordings by time." in notes
    assert "2 rows without any state value: their inputs are kept, not their times." in notes


def test_importing_the_module_needs_neither_torch_nor_scipy() -> None:
    code = (
        "import sys, snet_cli.data.tables; print({'torch', 'scipy', 'h5py', 'pandas', 'matplotlib'} & set(sys.modules))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
    )
    assert out.stdout.strip() == "set()"


RECORDINGS: dict[str, tuple[dict[str, Any], int, tuple[str, ...], list[int] | None]] = {
    "pendulum/*.csv": (
        {
            "states": "angle=angle_rad,rate=rate_rad_s",
            "units": "angle=rad,rate=rad/s",
            "angles": "angle",
            "split": "valid=valid_00,valid_01",
        },
        6,
        ("angle", "rate"),
        [4, 2, 0],
    ),
    "hovercraft/*.npz": (
        {
            "states": "x=X,Y,yaw,dX,dY,dyaw",
            "inputs": "u=m1,m2,m3,m4,m5,m6",
            "angles": "yaw",
            "split": "test=2024_03_14_h4_yellow",
            "units": "X=m,Y=m,yaw=rad,dX=m/s,dY=m/s,dyaw=rad/s",
        },
        5,
        ("X", "Y", "yaw", "dX", "dY", "dyaw"),
        [4, 0, 1],
    ),
    "robot_arm/*.npz": (
        {
            "states": "x=q1,q2,q3,q4,q5,q6,w1,w2,w3,w4,w5,w6",
            "inputs": "u=tau1,tau2,tau3,tau4,tau5,tau6",
            "split": "test=71-80",
        },
        80,
        ("q1", "q2", "q3", "q4", "q5", "q6", "w1", "w2", "w3", "w4", "w5", "w6"),
        [70, 0, 10],
    ),
    "cascaded_tanks/*.csv": (
        {"states": "y=y_V", "inputs": "u=u_V", "units": "y=V,u=V", "split": "test=test", "init_window": 50},
        2,
        ("y",),
        [1, 0, 1],
    ),
    "lynx_hare/*.csv": (
        {
            "states": "hare=hare_thousand_pelts,lynx=lynx_thousand_pelts",
            "time": "year",
            "units": "hare=thousand pelts,lynx=thousand pelts",
        },
        1,
        ("hare", "lynx"),
        None,
    ),
}


@pytest.mark.parametrize("pattern", RECORDINGS)
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the recordings in ../shared/data")
def test_recorded_data_imports_with_one_command(pattern: str) -> None:
    options, count, names, splits = RECORDINGS[pattern]
    data, notes = import_tables(sorted(SHARED.glob(pattern)), **options)
    assert (len(data), data.output_names) == (count, names)
    assert notes == ()
    assert np.isfinite(data.outputs).all()
    if data.inputs.sampled is not None:
        np.testing.assert_array_equal(data.inputs.sampled_end(), data.end)
        np.testing.assert_array_equal(data.inputs.sampled_start(), data.start)
    if splits is None:
        assert data.split is None
    else:
        assert data.split is not None
        assert np.bincount(data.split, minlength=3).tolist() == splits


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"states": ""}, "--states is missing"),
        ({"states": "x,,y"}, "--states 'x,,y' holds an empty item"),
        ({"states": "x="}, "--states: 'x=' lacks one of its sides"),
        ({"states": "x,x"}, "two channels are named 'x'"),
        ({"states": "x", "inputs": "x=y"}, "two channels are named 'x'"),
        ({"states": "v/t"}, r"the name 'v/t' holds '/' .* Rename it: --states 'v_t=v/t'"),
        ({"units": "x"}, "--units: 'x' gives no unit"),
        ({"units": "xs=m"}, "--units: there is no channel 'xs'. Did you mean 'x'?"),
        ({"units": "x=m,x=s"}, "--units names 'x' twice"),
        ({"hold": "zho"}, "--hold: 'zho' is no way to hold an input. Did you mean 'zoh'?"),
        ({"hold": "x=zoh"}, "--hold: there is no input 'x'"),
        ({"inputs": "y", "hold": "zoh,linear"}, "--hold: 'zoh' names no input"),
        ({"angles": "x=grad"}, "--angle: 'grad' is no unit of angles"),
        ({"angles": "y"}, "--angle: there is no state 'y'"),
        ({"derive": "v=x"}, "--derive: 'v=x' is no derivative. Write it as v=d"),
        ({"derive": "v=d(q)"}, "--derive: there is no state 'q'"),
        ({"derive": "a/b=d(x)"}, "the name 'a/b' holds '/'"),
        ({"window": 0.0}, "--window is 0.0, expected a positive time"),
        ({"window": float("nan")}, "--window is nan, expected a positive time"),
        ({"stride": 1.0}, "--stride is given without --window"),
        ({"decimate": 0}, "--decimate is 0, expected 1 or more"),
        ({"init_window": -1}, "--init-window is -1, expected 0 or more"),
        ({"split": "tset=run"}, "--split: there is no split 'tset'. Did you mean 'test'?"),
        ({"split": "run"}, "--split 'run' holds an item without a split"),
        ({"split": "test=rnu"}, "--split: no recording is named 'rnu'. Did you mean 'run'?"),
        ({"split": "test=2"}, "--split: there is no position 2, the recordings are 1 to 1"),
        ({"split": "test=run,valid=1"}, "--split: 'run' is in test and in valid"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        imported(tmp_path, "t,x,y,v/t\n0,1,2,3\n1,2,3,4\n", **options)
    with pytest.raises(UsageError, match="no file was named"):
        import_tables([], states="x")
