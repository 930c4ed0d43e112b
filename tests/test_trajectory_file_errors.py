"""Trajectory files and data that make no sense: every rule of the schema, by the text of its error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from snet_cli.data.signals import Inputs, SampledInputs
from snet_cli.data.trajectory_file import load_trajectories, save_trajectories
from snet_cli.data.trajectory_summary import check_trajectory_file
from snet_cli.errors import DataError
from tests.sample_files import Change, edited, plain_trajectories, replace_values, set_text

SENSELESS: list[tuple[Change, str]] = [
    (
        lambda f: f["time"].write_direct(np.r_[f["time"][:1], np.nan, f["time"][2:]]),
        "'time' of trajectory 'Lauf 000 ä' is nan at sample 2",
    ),
    (lambda f: f["time"].write_direct(f["time"][:][[0, 1, 1, *range(3, 54)]]), "twice, at samples 2 and 3."),
    (
        lambda f: f["time"].write_direct(f["time"][:][[*range(13), 14, 13, *range(15, 54)]]),
        "'time' of trajectory 'Lauf 001 ä' falls from",
    ),
    (
        lambda f: f["row_size"].write_direct(np.array([12, 13, 14, 16])),
        "row_size adds up to 55 samples, but 'time' has 54.",
    ),
    (
        lambda f: f["row_size"].write_direct(np.array([12, -13, 14, 15])),
        "row_size is -13 at entry 1, expected 0 or more.",
    ),
    (lambda f: f["row_size"].write_direct(np.array([2**62] * 4)), "row_size adds up to 18446744073709551616 samples"),
    (
        lambda f: f["y_x"].write_direct(np.full(54, np.nan)),
        "output 'x' has no value at all (every entry of 'y_x' is missing).",
    ),
    (
        lambda f: f["y_x"].write_direct(np.r_[np.inf, np.ones(53)]),
        "'y_x' of trajectory 'Lauf 000 ä' is inf, expected a finite value.",
    ),
    (lambda f: f["xtrue_h 1"].write_direct(np.full(54, -np.inf)), "'xtrue_h 1' of trajectory 'Lauf 000 ä' is -inf"),
    (lambda f: f["x0_x"].write_direct(np.full(4, np.inf)), "'x0_x' of trajectory 'Lauf 000 ä' is inf"),
    (lambda f: f["param_m"].write_direct(np.full(4, np.nan)), "'param_m' of trajectory 'Lauf 000 ä' is nan"),
    (lambda f: f["u_τ"].write_direct(np.full(12, np.nan)), "'u_τ' of trajectory 'Lauf 000 ä' is nan"),
    (lambda f: f["u_time"].write_direct(np.zeros(12)), "'u_time' of trajectory 'Lauf 000 ä' holds 0 twice"),
    (lambda f: f["u_row_size"].write_direct(np.array([0, 6, 3, 3])), "trajectory 'Lauf 000 ä' has no input samples."),
    (lambda f: f["uf_Fx_cos"].write_direct(np.full((4, 2), np.inf)), "'uf_Fx_cos' of trajectory 'Lauf 000 ä' is"),
    (
        lambda f: f["split"].write_direct(np.array([0, 1, 2, 3], "i1")),
        "split of trajectory 'Lauf 003 ä' is 3, expected 0, 1 or 2.",
    ),
    (
        lambda f: f["init_window"].write_direct(np.array([0, 1, -2, 3], "i4")),
        "init_window of trajectory 'Lauf 002 ä' is -2",
    ),
    (lambda f: f["trajectory"].write_direct(np.array([b"a"] * 4, "S64")), "the trajectory ids hold 'a' twice."),
    (
        lambda f: f["trajectory"].write_direct(np.array([b"a", b"b", b"\xff", b"d"], "S64")),
        "the ids in 'trajectory' are not UTF-8.",
    ),
    (
        lambda f: f["y_x"].attrs.__setitem__("snet_noise_std", -1.0),
        "snet_noise_std of 'x' is -1.0, expected 0 or more.",
    ),
    (lambda f: set_text(f["y_x"], "snet_noise_std", "much"), "snet_noise_std of 'y_x' is no number."),
    (lambda f: f["y_x"].attrs.__setitem__("units", 3), "the units of 'y_x' are no text."),
    (
        lambda f: set_text(f["u_τ"], "snet_intersample", "spline"),
        "snet_intersample of 'u_τ' is 'spline', expected one of zoh, linear, cubic.",
    ),
    (lambda f: f.attrs.__delitem__("output_names"), "lacks the attribute output_names, expected a JSON list of names."),
    (lambda f: set_text(f, "output_names", "x, y"), "the attribute output_names is no JSON list of names."),
    (lambda f: set_text(f, "output_names", '["x", "x"]'), "the attribute output_names names a channel twice."),
    (lambda f: set_text(f, "output_names", '["x"]'), "'y_phi.dot' is not among output_names."),
    (lambda f: set_text(f, "input_names", '["Fx"]'), "'u_τ' is not among input_names."),
    (lambda f: set_text(f, "input_names", '["Fx", "τ", "v"]'), "there is no variable 'u_v'."),
    (lambda f: set_text(f, "provenance", '{"a": NaN}'), "the attribute provenance is no JSON object."),
    (lambda f: set_text(f, "system", "[" * 50_000), "the attribute system is no JSON object."),
    (lambda f: f.attrs.__setitem__("title", 3), "the attribute title is no text."),
    (lambda f: f.__delitem__("time"), "there is no variable 'time'."),
    (lambda f: f.__delitem__("uf_Fx_sin"), "there is no variable 'uf_Fx_sin'."),
    (lambda f: f.create_dataset("uf_τ_mean", data=np.ones(4)), "there is no variable 'uf_τ_omega'."),
    (lambda f: replace_values(f, "y_x", np.ones(53)), "'y_x' has shape (53,), expected (54,) (obs,)."),
    (lambda f: replace_values(f, "y_x", np.ones((54, 1))), "'y_x' has shape (54, 1), expected (obs,)."),
    (lambda f: replace_values(f, "y_x", np.ones(54, "i8")), "'y_x' has type int64, expected float64 or float32."),
    (
        lambda f: replace_values(f, "row_size", np.array([12.0, 13, 14, 15])),
        "'row_size' has type float64, expected whole numbers",
    ),
    (lambda f: set_text(f, "snet_format_version", "2.1"), "is of format version 2.1, but this snet reads 1.x."),
    (lambda f: f.attrs.__delitem__("snet_format"), "is an HDF5 file of another program"),
]


@pytest.mark.parametrize(("change", "message"), SENSELESS, ids=[message[:40] for _, message in SENSELESS])
def test_what_makes_no_sense_is_refused_by_name(tmp_path: Path, change: Change, message: str) -> None:
    path = edited(tmp_path / "data.h5", change)
    with pytest.raises(DataError) as caught:
        load_trajectories(path)
    assert caught.value.message.startswith(f"{path}: ")
    assert message in caught.value.message
    assert caught.value.hint


def test_check_lists_every_problem_at_once(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        file["split"][...] = 5
        file["y_x"][...] = np.inf
        del file["obs"]
        del file.attrs["history"]

    problems = check_trajectory_file(edited(tmp_path / "data.h5", change))
    for message in (
        "'y_x' of trajectory",
        "split of trajectory",
        "lacks the dimension scale 'obs'",
        "attribute history",
    ):
        assert any(message in problem for problem in problems), message


BAD: list[tuple[dict[str, Any], str]] = [
    ({"output_names": ("a/b",)}, "the output name 'a/b' holds '/' or a control character."),
    ({"output_names": ("",)}, "the output name '' is empty or no text."),
    ({"ids": ("a", "a")}, "the trajectory ids hold 'a' twice."),
    ({"ids": ("a", "b" * 65)}, "is empty, too long or not printable."),
    (
        {"ids": (), "row_size": np.zeros(0, int), "time": np.zeros(0), "outputs": np.zeros((0, 1))},
        "holds no trajectory at all.",
    ),
    ({"outputs": np.ones((5, 2))}, "outputs has shape (5, 2), expected (5, 1)."),
    ({"x0": np.ones((5, 1))}, "x0 has shape (5, 1), expected (2, 1)."),
    ({"time": np.zeros(5)}, "'time' of trajectory 'a' holds 0 twice, at samples 1 and 2."),
    ({"units": {"x": "m\n"}}, "the unit 'm\\n' is no printable text."),
    ({"title": "a\0"}, "the title holds a NUL"),
    ({"inputs": Inputs(("u",))}, "the inputs are named ['u'], but their signals []."),
    ({"system": {"name": float("inf")}}, "provenance or system cannot be written as JSON"),
    (
        {
            "inputs": Inputs(
                ("time",), SampledInputs(("time",), np.ones(2, int), np.zeros(2), np.zeros((2, 1)), ("zoh",))
            )
        },
        "an input cannot be named 'time': u_time has a meaning of its own.",
    ),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_what_would_not_be_read_is_not_written(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        save_trajectories(tmp_path / "data.h5", plain_trajectories(**changes))
    assert message in caught.value.message
    assert list(tmp_path.iterdir()) == []
