"""Trajectory files: what is written comes back, other programs read it, and what makes no sense is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st

from snet_cli.data.content import open_content
from snet_cli.data.signals import INTERSAMPLE, FourierInputs, Inputs, SampledInputs
from snet_cli.data.storage import check_signature
from snet_cli.data.tables import import_tables
from snet_cli.data.trajectories import Trajectories
from snet_cli.data.trajectory_file import (
    decode_trajectories,
    encode_trajectories,
    load_trajectories,
    load_with_notes,
    save_trajectories,
)
from snet_cli.data.trajectory_layout import kind_of
from snet_cli.data.trajectory_rules import require_fit_samples
from snet_cli.data.trajectory_summary import check_trajectory_file, describe_trajectory_file
from snet_cli.errors import DataError
from tests.sample_files import (
    edited,
    plain_trajectories,
    replace_values,
    same,
    sample_checkpoint,
    sample_trajectories,
    set_text,
)

NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/"), min_size=1, max_size=8)


@st.composite
def any_trajectories(draw: st.DrawFn) -> Trajectories:
    """Trajectories of any names, lengths (none included), inputs and optional parts."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(1, 4))
    row_size = np.array(draw(st.lists(st.integers(0, 5), min_size=count, max_size=count)))
    rows = int(row_size.sum())
    steps = rng.uniform(1e-6, 1.0, rows)
    names = tuple(draw(st.lists(NAMES, max_size=3, unique=True)))
    states = names + tuple(draw(st.lists(NAMES.filter(lambda n: n not in names), max_size=2, unique=True)))
    inputs = draw(st.lists(NAMES.filter(lambda n: n not in ("time", "row_size")), max_size=3, unique=True))
    split = draw(st.integers(0, len(inputs)))
    sampled = fourier = None
    if inputs[:split]:
        holds = tuple(draw(st.sampled_from(INTERSAMPLE)) for _ in inputs[:split])
        knots = np.tile([0.0, 2.0, 9.0], count)
        values = rng.normal(size=(knots.size, split))
        sampled = SampledInputs(tuple(inputs[:split]), np.full(count, 3), knots, values, holds)
    if inputs[split:]:
        shape = (count, len(inputs) - split, draw(st.integers(1, 3)))
        fourier = FourierInputs(
            tuple(inputs[split:]), rng.normal(size=shape[:2]), *(rng.normal(size=shape) for _ in range(3))
        )
    chosen = draw(st.tuples(*(st.booleans() for _ in range(4))))
    outputs = np.where(rng.uniform(size=(rows, len(names))) < 0.3, np.nan, rng.normal(size=(rows, len(names))))
    return Trajectories(
        ids=tuple(draw(st.lists(NAMES, min_size=count, max_size=count, unique=True))),
        row_size=row_size,
        time=np.cumsum(steps),
        outputs=outputs,
        output_names=names,
        inputs=Inputs(tuple(inputs), sampled, fourier),
        state_names=states,
        truth=rng.normal(size=(rows, len(states))) if states and chosen[0] else None,
        x0=rng.normal(size=(count, len(states))) if states and chosen[1] else None,
        split=rng.integers(0, 3, count) if chosen[2] else None,
        init_window=rng.integers(0, 9, count) if chosen[3] else None,
        parameters={name: rng.normal(size=count) for name in draw(st.lists(NAMES, max_size=2, unique=True))},
        title=draw(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10)),
    )


@settings(max_examples=30, deadline=None)
@given(any_trajectories())
def test_any_trajectories_come_back(data: Trajectories) -> None:
    loaded = decode_trajectories(encode_trajectories(data), "file", allow_missing_channels=True)
    assert same(loaded.trajectories, data)
    assert loaded.unchecked == ()


def test_everything_comes_back_and_keeps_every_rule(tmp_path: Path) -> None:
    path, data = tmp_path / "data.h5", sample_trajectories()
    digest = save_trajectories(path, data)
    loaded = load_with_notes(path)
    assert same(loaded.trajectories, data)
    assert loaded.notes == ()
    assert loaded.sha256 == digest
    assert check_trajectory_file(path) == []


def test_the_same_trajectories_give_the_same_bytes() -> None:
    code = "from tests.sample_files import *; from snet_cli.data.trajectory_file import *; import sys;"
    code += "sys.stdout.write(__import__('hashlib').sha256(encode_trajectories(sample_trajectories())).hexdigest())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    time.sleep(1.0)  # HDF5 stores times in whole seconds, if it does
    loaded = decode_trajectories(encode_trajectories(sample_trajectories()), "file")
    assert loaded.sha256 == other.stdout


def test_long_texts_leave_the_attributes_and_come_back() -> None:
    data = replace(sample_trajectories(), provenance={"parents": ["ab" * 32] * 2_000})
    assert same(decode_trajectories(encode_trajectories(data), "file").trajectories, data)


def test_xarray_shows_dimensions_and_variables(tmp_path: Path) -> None:
    data = replace(sample_trajectories(), provenance={"parents": ["ab" * 32] * 2_000})
    save_trajectories(tmp_path / "data.h5", data)
    with xarray.open_dataset(tmp_path / "data.h5", engine="h5netcdf") as dataset:
        assert dataset.sizes["obs"] == data.time.size
        assert (dataset.sizes["traj"], dataset.sizes["uobs"], dataset.sizes["harm"]) == (4, 12, 2)
        assert not dataset.coords
        assert dataset["y_x"].dims == dataset["xtrue_x"].dims == ("obs",)
        assert dataset["uf_Fx_omega"].dims == ("traj", "harm")
        assert dataset["x0_x"].dims == dataset["row_size"].dims == ("traj",)
        assert dataset["y_x"].attrs["units"] == "m"
        np.testing.assert_array_equal(dataset["y_phi.dot"], data.outputs[:, 1])


def test_a_file_without_outputs_holds_starts_and_inputs(tmp_path: Path) -> None:
    data = sample_trajectories()
    none = replace(
        data,
        row_size=np.zeros(4, np.int64),
        time=np.zeros(0),
        outputs=np.zeros((0, 0)),
        output_names=(),
        truth=None,
        noise_std={},
    )
    save_trajectories(tmp_path / "ask.h5", none)
    assert same(load_trajectories(tmp_path / "ask.h5"), none)
    assert check_trajectory_file(tmp_path / "ask.h5") == []
    with xarray.open_dataset(tmp_path / "ask.h5", engine="h5netcdf") as dataset:
        assert dataset.sizes["obs"] == 0
    with pytest.raises(DataError, match="holds no measured outputs"):
        require_fit_samples(load_trajectories(tmp_path / "ask.h5"))


def test_ten_thousand_trajectories_take_seconds(tmp_path: Path) -> None:
    count = 10_000
    rng = np.random.default_rng(0)
    data = plain_trajectories(
        ids=tuple(map(str, range(count))),
        row_size=np.full(count, 100),
        time=np.tile(np.arange(100.0), count),
        outputs=rng.normal(size=(count * 100, 1)),
    )
    start = time.process_time()
    save_trajectories(tmp_path / "data.h5", data)
    assert same(load_trajectories(tmp_path / "data.h5"), data)
    assert time.process_time() - start < 10.0


@pytest.mark.parametrize("kind", [">f8", "<f4", ">f4"])
def test_other_floats_and_byte_orders_are_read(tmp_path: Path, kind: str) -> None:
    data = sample_trajectories()
    path = edited(tmp_path / "data.h5", lambda f: replace_values(f, "y_x", data.outputs[:, 0].astype(kind)))
    loaded = load_with_notes(path)
    np.testing.assert_array_equal(loaded.trajectories.outputs[:, 0], data.outputs[:, 0].astype(kind))
    assert loaded.notes[0] == "no checksums: a damaged value in y_x would go unnoticed."
    assert check_trajectory_file(path) == ["'y_x' has no checksum (fletcher32)."]


@pytest.mark.parametrize("kind", ["<f2", ">i4", "u1"])
def test_integers_and_half_floats_are_refused_here_and_read_by_import(tmp_path: Path, kind: str) -> None:
    """They cannot hold a missing value, or hardly a digit; tables promise no more than they hold."""
    values = np.arange(54).astype(kind)
    path = edited(tmp_path / "data.h5", lambda f: replace_values(f, "y_x", values))
    with pytest.raises(DataError, match=rf"'y_x' has type {values.dtype.name}, expected float64 or float32"):
        load_with_notes(path)
    np.savez(tmp_path / "run.npz", t=np.arange(54.0), x=values)
    imported, _ = import_tables([tmp_path / "run.npz"], states="x")
    np.testing.assert_array_equal(imported.outputs[:, 0], np.arange(54.0))


def test_people_may_correct_a_file_with_h5py(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        file["split"][...] = 2
        set_text(file["y_x"], "units", "km")

    loaded = load_trajectories(edited(tmp_path / "data.h5", change))
    assert loaded.split is not None
    assert loaded.split.tolist() == [2, 2, 2, 2]
    assert loaded.units["x"] == "km"


def test_a_constant_channel_and_strangers_are_notes(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        file["y_x"][...] = 3.0
        file["comment"] = np.zeros(3)

    notes = load_with_notes(edited(tmp_path / "data.h5", change)).notes
    assert "output 'x' is constant (3)." in notes
    assert "unknown variables are ignored: comment." in notes


def test_training_needs_two_samples_and_inputs_all_along() -> None:
    require_fit_samples(plain_trajectories())
    with pytest.raises(DataError, match="trajectory 'b' has 1 sample, expected at least two"):
        require_fit_samples(plain_trajectories(row_size=np.array([4, 1]), time=np.array([0.0, 1, 2, 3, 0])), "data.h5")
    with pytest.raises(DataError, match="output 'x' has no value at all"):
        require_fit_samples(plain_trajectories(outputs=np.full((5, 1), np.nan)))
    short = SampledInputs(("u",), np.array([2, 2]), np.array([0.0, 2.0, 0.0, 0.5]), np.zeros((4, 1)), ("zoh",))
    with pytest.raises(DataError, match=r"the inputs of trajectory 'b' span 0 to 0\.5 s, but its samples 0 to 1"):
        require_fit_samples(plain_trajectories(inputs=Inputs(("u",), short)))


def test_info_says_everything_as_json(tmp_path: Path) -> None:
    save_trajectories(tmp_path / "data.h5", sample_trajectories())
    described = describe_trajectory_file(tmp_path / "data.h5")
    json.dumps(described, allow_nan=False)
    assert described["kind"] == "snet-trajectory"
    assert (described["trajectories"], described["samples"]) == (4, 54)
    assert [output["name"] for output in described["outputs"]] == ["x", "phi.dot"]
    assert described["outputs"][0]["unit"] == "m"
    assert described["outputs"][0]["missing"] == int(np.isnan(sample_trajectories().outputs[:, 0]).sum())
    assert [(i["name"], i["intersample"]) for i in described["inputs"]] == [("Fx", "fourier"), ("τ", "linear")]
    assert described["split"] == {"train": 2, "valid": 1, "test": 1}
    assert described["x0"] == {"x": 3, "phi.dot": 4, "h 1": 4}
    assert described["system"] == {"name": "vehicle", "m": 1.0}


def test_info_of_a_forecast_that_diverged(tmp_path: Path) -> None:
    save_trajectories(tmp_path / "data.h5", plain_trajectories(outputs=np.full((5, 1), np.nan)))
    described = describe_trajectory_file(tmp_path / "data.h5")
    assert described["outputs"][0]["max"] is None
    assert described["notes"] == ["output 'x' has no value at all."]


def test_kinds_are_sniffed() -> None:
    from snet_cli.data.checkpoint_file import encode_checkpoint

    assert kind_of(encode_trajectories(plain_trajectories()), "f") == "snet-trajectory"
    assert kind_of(encode_checkpoint(sample_checkpoint()), "f") == "snet-checkpoint"
    with h5py.File.in_memory() as file:
        file.flush()
        foreign = file.id.get_file_image()
    assert kind_of(foreign, "f") is None
    check_signature(foreign, "f")
    with open_content(foreign, "f") as content:
        assert content.arrays == {}


def test_reading_imports_neither_torch_nor_scipy(tmp_path: Path) -> None:
    save_trajectories(tmp_path / "data.h5", sample_trajectories())
    code = (
        "import sys; from snet_cli.data.trajectory_summary import describe_trajectory_file as d;"
        "from snet_cli.data.checkpoint_file import load_checkpoint; d(sys.argv[1]);"
        "print([m for m in ('torch', 'scipy', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "data.h5")], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
