"""NPZ and MAT: which array and column a channel is, numbered recordings, MATLAB's two formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import loadmat, savemat

from snet_cli.data.mat5 import read_mat5
from snet_cli.data.tables import Imported, import_tables
from snet_cli.errors import DataError

T = np.linspace(0, 1, 11)
X = np.stack([np.sin(T), np.cos(T), T], axis=1)
U = np.stack([T**2, -T], axis=1)


def write_npz(path: Path, **arrays: Any) -> None:
    np.savez(path, **arrays)


def write_mat5(path: Path, **arrays: Any) -> None:
    savemat(path, arrays, do_compression=True)


def write_mat73(path: Path, **arrays: Any) -> None:
    """As MATLAB does: 512 bytes of its own, then HDF5, every matrix transposed."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in arrays.items():
            matrix = np.atleast_2d(np.asarray(value, dtype=np.float64))
            dataset = file.create_dataset(name, data=matrix.T if np.ndim(value) == 2 else matrix)
            dataset.attrs["MATLAB_class"] = np.bytes_(b"double")
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


FORMATS = {"run.npz": write_npz, "run.mat": write_mat5, "run73.mat": write_mat73}


@pytest.fixture(params=FORMATS)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    def write(**arrays: Any) -> Path:
        path: Path = tmp_path / request.param
        FORMATS[request.param](path, **arrays)
        return path

    return write


def test_columns_of_an_array_are_named(file: Any) -> None:
    data, notes = import_tables([file(t=T, x=X, u=U)], states="x=X,Y,yaw", inputs="u=F,tau")
    assert data.output_names == ("X", "Y", "yaw")
    assert data.inputs.names == ("F", "tau")
    np.testing.assert_array_equal(data.outputs, X)
    np.testing.assert_array_equal(data.time, T)
    assert data.inputs.sampled is not None
    np.testing.assert_array_equal(data.inputs.sampled.values, U)
    assert notes == ()


def test_vectors_by_name_and_renamed(file: Any) -> None:
    path = file(t=T, pos=X[:, 0], vel=X[:, 1], x=X, force=U[:, 0])
    data, _ = import_tables([path], states="pos,v=vel,x=a,_,c", inputs="F=force")
    assert data.output_names == ("pos", "v", "a", "c")
    np.testing.assert_array_equal(data.outputs, X[:, [0, 1, 0, 2]])
    assert data.inputs.names == ("F",)


def test_a_bare_array_names_its_columns_and_leading_columns_suffice(file: Any) -> None:
    data, notes = import_tables([file(t=T, x=X)], states="x")
    assert data.output_names == ("x1", "x2", "x3")
    assert notes == ("the columns of 'x' are named x1 ... x3.",)
    data, notes = import_tables([file(t=T, x=X)], states="x=a,b")
    np.testing.assert_array_equal(data.outputs, X[:, :2])
    assert notes == ("'x' has 3 columns; the 2 names given are its first, the others are left out.",)


def test_inputs_one_row_shorter_are_held(file: Any) -> None:
    data, notes = import_tables([file(t=T, x=X, u=U[:-1])], states="x=a,b,c", inputs="u=F,tau")
    sampled = data.inputs.sampled
    assert sampled is not None
    np.testing.assert_array_equal(sampled.time, T)
    np.testing.assert_array_equal(sampled.values, np.concatenate([U[:-1], U[-2:-1]]))
    assert notes == ()
    with pytest.raises(DataError, match=r"'x' has shape \(10, 3\), but there are 11 times"):
        import_tables([file(t=T, x=X[:-1])], states="x=a,b,c")
    with pytest.raises(DataError, match=r"'u' has shape \(9, 2\), but there are 11 times"):
        import_tables([file(t=T, x=X, u=U[:-2])], states="x=a,b,c", inputs="u=F,tau")


def test_matrices_with_times_along_the_columns_are_turned(file: Any) -> None:
    data, _ = import_tables([file(t=T, x=X.T)], states="x=a,b,c")
    np.testing.assert_array_equal(data.outputs, X)


def test_a_single_time_is_the_sampling_interval(file: Any) -> None:
    data, notes = import_tables([file(Ts=0.5, x=X, k=X[:, 0])], states="k", time="Ts")
    np.testing.assert_array_equal(data.time, 0.5 * np.arange(11))
    assert notes == ("'Ts' is a single number, taken as the sampling interval; the times start at 0.",)


def test_recordings_by_the_values_of_an_array(file: Any) -> None:
    data, _ = import_tables([file(t=T, x=X, run=np.repeat([2, 7], [5, 6]))], states="x=a,b,c", by="run")
    assert data.ids == ("2", "7")
    assert data.row_size.tolist() == [5, 6]


def test_unknown_arrays_are_named_with_the_nearest(file: Any) -> None:
    with pytest.raises(DataError, match=r"there is no array 'pso'\. Did you mean 'pos'\? It has "):
        import_tables([file(t=T, pos=X[:, 0])], states="pso")
    with pytest.raises(
        DataError, match=r"'x' has 3 columns, expected a 1-D array for 'a'\. Name its columns: --states x=a"
    ):
        import_tables([file(t=T, x=X)], states="a=x")
    with pytest.raises(DataError, match=r"there is no array 'd'"):
        import_tables([file(t=T, x=X)], states="x=a,b,c,d")
    with pytest.raises(DataError, match=r"the time 'x' has shape \(11, 3\)"):
        import_tables([file(t=T, x=X, k=T)], states="k", time="x")


def numbered(path: Path) -> Imported:
    arrays: dict[str, Any] = {"gain": np.arange(3.0)}
    for number in (10, 2, 1):
        rows = 5 + number
        arrays[f"{number:03}_t"] = np.arange(rows) * 0.1
        arrays[f"{number:03}_x"] = np.full((rows, 2), float(number)) + np.arange(rows)[:, None]
        arrays[f"{number:03}_u"] = np.ones((rows - 1, 1)) * np.arange(rows - 1)[:, None]
    np.savez(path, **arrays)
    return import_tables([path], states="x=q,v", inputs="u=tau", split="test=2-3")


def test_numbered_keys_are_one_recording_each(tmp_path: Path) -> None:
    data, notes = numbered(tmp_path / "runs.npz")
    assert data.ids == ("001", "002", "010")
    assert data.row_size.tolist() == [6, 7, 15]
    assert data.outputs[data.offsets[:-1], 0].tolist() == [1, 2, 10]
    assert data.split is not None
    assert data.split.tolist() == [0, 2, 2]
    assert notes == ("--split: 2-3 are positions: '002', '010'.",)
    single, _ = import_tables([tmp_path / "runs.npz"], states="002_x=q,v", time="002_t")
    assert single.row_size.tolist() == [7]
    with pytest.raises(DataError, match=r"runs\.npz, '001': there is no array 'tau'"):
        import_tables([tmp_path / "runs.npz"], states="x=q,v", inputs="tau")


def test_integer_single_and_fortran_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", t=np.arange(11), x=np.asfortranarray(X.astype(np.float32)), on=T > 0.5)
    data, _ = import_tables([tmp_path / "a.npz"], states="x=a,b,c,on")
    np.testing.assert_array_equal(data.outputs[:, :3], X.astype(np.float32))
    assert data.outputs[:, 3].tolist() == [0] * 6 + [1] * 5


def test_fields_of_structures(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"log": {"t": T, "x": X, "note": "hello", "parts": [{"a": 1}, {"a": 2}]}})
    data, _ = import_tables([tmp_path / "a.mat"], states="log.x=a,b,c", time="log.t")
    np.testing.assert_array_equal(data.outputs, X)
    with h5py.File(tmp_path / "b.mat", "w", userblock_size=512) as file:
        file["log/t"], file["log/x"] = T[None], X.T
    data, _ = import_tables([tmp_path / "b.mat"], states="log.x=a,b,c", time="log.t")
    np.testing.assert_array_equal(data.outputs, X)


def test_mat_values_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"t": T, "c": X[:, 0] * 1j, "cell": np.array([T, "a"], dtype=object)})
    with pytest.raises(DataError, match="'c' holds complex numbers"):
        import_tables([tmp_path / "a.mat"], states="c")
    with pytest.raises(DataError, match="'cell' is a cell array"):
        import_tables([tmp_path / "a.mat"], states="cell")


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", "?"])
def test_mat5_numbers_are_what_scipy_reads(tmp_path: Path, dtype: str, compressed: bool) -> None:
    x = (np.arange(21).reshape(7, 3) % 5).astype(dtype)
    content = {"t": np.arange(7), "x": x, "s": {"t": np.arange(7.0), "deep": {"x": x.T}}}
    savemat(tmp_path / "a.mat", content, do_compression=compressed)
    arrays, refused = read_mat5((tmp_path / "a.mat").read_bytes(), 10**6)
    assert refused == {}
    oracle = loadmat(tmp_path / "a.mat")
    for name, value in (("t", oracle["t"]), ("x", oracle["x"]), ("s.deep.x", oracle["s"][0, 0]["deep"][0, 0]["x"])):
        np.testing.assert_array_equal(arrays[name], value)


def test_mat5_bombs_and_damage(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"t": np.zeros(500_000), "x": np.zeros(500_000)}, do_compression=True)
    with pytest.raises(DataError, match="the arrays take more than the limit of 1000000 bytes"):
        import_tables([tmp_path / "a.mat"], states="x", max_bytes=1_000_000)
    write_mat5(tmp_path / "b.mat", t=T, x=X)
    content = (tmp_path / "b.mat").read_bytes()
    random = np.random.default_rng(0)
    for place in random.integers(128, len(content), 60):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(random.integers(8))
        (tmp_path / "c.mat").write_bytes(damaged)
        try:
            data = import_tables([tmp_path / "c.mat"], states="x=a,b,c").trajectories
        except DataError:
            continue
        np.testing.assert_array_equal(data.outputs, X)


def test_hostile_mat73_data_sets_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    (tmp_path / "secret").write_bytes(X.tobytes())
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = X
    with h5py.File(path, "w", userblock_size=512) as file:
        file["t"] = T[None]
        file.create_dataset("outside", (3, 11), "f8", external=[(str(tmp_path / "secret"), 0, h5py.h5f.UNLIMITED)])
        layout = h5py.VirtualLayout((11, 3), "f8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (11, 3))
        file.create_virtual_dataset("virtual", layout)
        file["linked"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "x")
        file["soft"] = h5py.SoftLink("/t")
        file.create_dataset("huge", (1, 10**12), "f8", chunks=(1, 10**6), compression="gzip")
        file.create_dataset("text", data=np.frombuffer(b"abcdefghijk", np.uint8)[None].astype(np.uint16))
        file["text"].attrs["MATLAB_class"] = np.bytes_(b"char")
        file.create_dataset("strings", data=["a"] * 11)
    reasons = {
        "outside": "keeps its values in other files",
        "virtual": "keeps its values in other files",
        "linked": "is a link",
        "soft": "is a link",
        "huge": "declares a size that is not there",
        "text": "is no array of numbers",
        "strings": "is no array of numbers",
    }
    for name, reason in reasons.items():
        with pytest.raises(DataError, match=f"'{name}' {reason}"):
            import_tables([path], states=name)
    with h5py.File(path, "w", userblock_size=512) as file:
        for name in ("t", "x"):
            file.create_dataset(name, data=np.zeros((1, 200_000)), compression="gzip")
    with pytest.raises(DataError, match="the arrays declare 3200000 bytes, more than the limit of 3000000"):
        import_tables([path], states="x", max_bytes=3_000_000)
