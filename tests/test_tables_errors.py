"""Tables that cannot be imported: the message names the file, the row and the way out."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snet_cli.data.tables import import_tables
from snet_cli.errors import DataError, UsageError


def error_of(path: Path, **options: Any) -> str:
    options.setdefault("states", "x")
    with pytest.raises(DataError) as error:
        import_tables([path], **options)
    assert error.value.hint
    return str(error.value).replace(str(path.parent) + "/", "")


CSV_ERRORS: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown column": (
        "t,xs,y\n0,1,2\n1,2,3\n",
        {},
        "run.csv: there is no column 'x'. Did you mean 'xs'? It has 't', 'xs', 'y'.",
    ),
    "unknown time": (
        "t,x\n0,1\n1,2\n",
        {"time": "zeit"},
        "run.csv: there is no column 'zeit'. It has 't', 'x'.",
    ),
    "no time": (
        "clock,x\n0,1\n1,2\n",
        {},
        "run.csv: no name tells which column is the time. Say which it is: --time NAME. There is 'clock', 'x'.",
    ),
    "two times": (
        "t,time,x\n0,0,1\n1,1,2\n",
        {},
        "run.csv: 't', 'time' could all be the time. Say which it is: --time NAME. There is 't', 'time', 'x'.",
    ),
    "same name twice": (
        "t,x,x\n0,1,2\n1,2,3\n",
        {},
        "run.csv: 2 columns are named 'x'. Give each column a name of its own.",
    ),
    "text": (
        "t,x\n0,1\n1,high\n",
        {},
        "run.csv, line 3: 'high' in column 'x' is no number. Write numbers with a decimal point, and leave the cell "
        "empty where nothing was measured.",
    ),
    "text after blank lines and comments": (
        "# logger\n\nt,x\n0,1\n\n# pause\n1,2_0\n",
        {},
        "run.csv, line 7: '2_0' in column 'x' is no number. Write numbers with a decimal point, and leave the cell "
        "empty where nothing was measured.",
    ),
    "text after a quoted line break": (
        't,x,remark\n0,1,"a\nb"\n1,?,c\n',
        {},
        "run.csv, line 4: '?' in column 'x' is no number. Write numbers with a decimal point, and leave the cell "
        "empty where nothing was measured.",
    ),
    "too few cells": (
        "t,x,y\n0,1,2\n1,2\n",
        {},
        "run.csv, line 3: 2 cells, expected 3 as in the header. Check whether the file was cut off there, or a text "
        "with a delimiter lacks its quotes.",
    ),
    "too many cells": (
        "t,x\n0,1\n1,2,3\n",
        {},
        "run.csv, line 3: 3 cells, expected 2 as in the header. Check whether the file was cut off there, or a text "
        "with a delimiter lacks its quotes.",
    ),
    "open quote": (
        't,x\n0,1\n1,"2\n2,3\n',
        {},
        "run.csv, line 3: a quoted cell that starts here has no end (or one cell has more than 131072 characters). "
        "Close the quote.",
    ),
    "huge cell": (
        "t,x\n0,1\n1," + "9" * 200_000 + '"\n',
        {},
        "run.csv, line 3: a quoted cell that starts here has no end (or one cell has more than 131072 characters). "
        "Close the quote.",
    ),
    "duplicate time": (
        "t,x\n0,1\n0.5,2\n1,3\n0.5,4\n",
        {},
        "run.csv, line 5: the time 0.5 stands there a second time (first in line 3). Remove one of the rows; if they "
        "belong to different recordings, separate them with --by COLUMN.",
    ),
    "missing time": (
        "t,x\n0,1\n,2\n1,3\n",
        {},
        "run.csv, line 3: the time in 't' is missing, expected a finite number. Remove the row or give it its time.",
    ),
    "infinite time": (
        "t,x\n0,1\ninf,2\n1,3\n",
        {},
        "run.csv, line 3: the time in 't' is infinite, expected a finite number. Remove the row or give it its time.",
    ),
    "infinite state": (
        "t,x\n0,1\n1,-inf\n",
        {},
        "run.csv, line 3: 'x' is infinite, expected a finite number. Leave the cell empty if the value was not "
        "measured.",
    ),
    "one sample": (
        "t,x\n0,1\n",
        {},
        "run.csv: recording 'run' has 1 sample, expected at least two. Leave it out, or check that --by names the "
        "column that separates the recordings.",
    ),
    "one sample of a value": (
        "t,x,run\n0,1,a\n1,1,a\n0,1,b\n",
        {"by": "run"},
        "run.csv: recording 'b' has 1 sample, expected at least two. Leave it out, or check that --by names the "
        "column that separates the recordings.",
    ),
    "nothing measured": (
        "t,x\n0,\n1,\n",
        {},
        "run.csv: recording 'run' holds no value of 'x'. Check the columns named by --states; leave the recording out "
        "if nothing was measured.",
    ),
    "a state not measured": (
        "t,x,y\n0,1,\n1,2,\n",
        {"states": "x,y"},
        "the state 'y' holds no value at all. Check the column; leave it out of --states if it was not measured.",
    ),
    "an input not recorded": (
        "t,x,u\n0,1,\n1,2,\n",
        {"inputs": "u"},
        "run.csv: the input 'u' of recording 'run' holds no value at all. An input has to be known; leave it out of "
        "--inputs, or leave the recording out.",
    ),
    "no value to separate by": (
        "t,x,run\n0,1,a\n1,2,\n",
        {"by": "run"},
        "run.csv, line 3: 'run', named by --by, is empty. Say which recording the row belongs to.",
    ),
    "no rows": (
        "t,x\n",
        {},
        "run.csv: there are column names but no rows. Check that the recording was written.",
    ),
    "no table": (
        "\n \n# only a remark\n",
        {},
        "run.csv: the file holds no table, expected a line of column names and rows of numbers. Check that the "
        "recording was written.",
    ),
    "no names": (
        "0,1\n1,2\n",
        {},
        "run.csv, line 1: the first row holds numbers, expected the names of the columns. Add a first line with the "
        "names, such as t,x,y",
    ),
    "too thin": (
        "t,x\n0,1\n1,2\n2,3\n",
        {"decimate": 5},
        "--decimate 5 leaves 'run' 1 sample, expected at least two. Keep more rows.",
    ),
    "window too long": (
        "t,x\n0,1\n1,2\n2,3\n",
        {"window": 5.0},
        "no recording is as long as the window of 5 s: the longest takes 2. Choose a shorter --window, or leave it "
        "out.",
    ),
    "window too short": (
        "t,x\n0,1\n1,2\n2,3\n",
        {"window": 0.5},
        "a window of 0.5 s of 'run' holds a single sample, expected at least two. Choose a longer --window.",
    ),
}


@pytest.mark.parametrize("case", CSV_ERRORS)
def test_csv(tmp_path: Path, case: str) -> None:
    text, options, message = CSV_ERRORS[case]
    (tmp_path / "run.csv").write_text(text)
    assert error_of(tmp_path / "run.csv", **options) == message


def test_files_that_are_not_there_or_nothing(tmp_path: Path) -> None:
    assert error_of(tmp_path / "run.csv") == "run.csv: there is no such file. Check the name."
    (tmp_path / "run.csv").touch()
    assert error_of(tmp_path / "run.csv") == "run.csv: the file is empty. Check that the recording was written."
    assert error_of(tmp_path).endswith(f": this is a folder, expected a file. Name its files: {tmp_path.name}/*.csv")
    (tmp_path / "run.csv").write_text("t,x\n0,1\n1,2\n")
    message = error_of(tmp_path / "run.csv", max_bytes=5)
    assert message == "run.csv: the file has 12 bytes, more than the limit of 5. Raise --max-bytes."


def npy(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


FOREIGN: dict[str, tuple[bytes, str]] = {
    "a.pkl": (pickle.dumps([1, 2]), "the file is a pickle, which is never loaded"),
    "a.pt": (
        zipped({"a/data.pkl": b"x", "a/version": b"3"}),
        "this is a PyTorch file, a pickle, which is never loaded",
    ),
    "a.xlsx": (zipped({"[Content_Types].xml": b"<x/>"}), "this is an office document"),
    "a.zip": (zipped({"a.csv": b"t,x\n"}), "the archive holds no arrays but 'a.csv'"),
    "a.npy": (npy(np.arange(3)), "the file is a single NumPy array"),
    "a.parquet": (b"PAR1abc", "the file is a Parquet file"),
    "a.csv.gz": (b"\x1f\x8b\x08abc", "the file is packed with gzip"),
    "a.png": (b"\x89PNG\r\n\x1a\n\x00\x00", "the file is binary and of no known kind"),
    "a.npz": (b"PK\x03\x04 and no more", "the archive is damaged"),
    "a.mat": (
        b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + b"\x09\x00\x00\x00\xff\x00\x00\x00",
        "the MAT file is damaged (it ends in the middle of an array)",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files(tmp_path: Path, name: str) -> None:
    content, message = FOREIGN[name]
    (tmp_path / name).write_bytes(content)
    assert error_of(tmp_path / name).startswith(f"{name}: {message}")


def test_object_arrays_are_refused_unread(tmp_path: Path) -> None:
    objects = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "a.npz", t=np.arange(1.0), x=objects)
    assert error_of(tmp_path / "a.npz").startswith("a.npz: 'x' holds Python objects, which are never loaded.")
    np.savez(tmp_path / "b.npz", x=objects)
    assert error_of(tmp_path / "b.npz").startswith("b.npz: 'x' holds Python objects, which are never loaded.")


def test_declared_sizes_are_checked_before_anything_is_unpacked(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", t=np.zeros(2_000_000), x=np.zeros(2_000_000))
    message = error_of(tmp_path / "bomb.npz", max_bytes=1_000_000)
    assert message.startswith("bomb.npz: the arrays declare 32000256 bytes, more than the limit of 1000000.")
    lying = npy(np.arange(3.0)).replace(b"(3,)", b"(9999999999999,)")[: len(npy(np.arange(3.0)))]
    (tmp_path / "lie.npz").write_bytes(zipped({"t.npy": npy(np.arange(3.0)), "x.npy": lying}))
    assert "'x' declares a size that is not there" in error_of(tmp_path / "lie.npz") or "'x' has a damaged header" in (
        error_of(tmp_path / "lie.npz")
    )


def test_any_flipped_byte_of_an_npz_is_found_or_harmless(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", t=np.arange(20.0), x=np.sin(np.arange(20.0)))
    content = (tmp_path / "a.npz").read_bytes()
    whole = import_tables([tmp_path / "a.npz"], states="x").trajectories
    random = np.random.default_rng(0)
    for place in random.integers(0, len(content), 150):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(random.integers(8))
        (tmp_path / "b.npz").write_bytes(damaged)
        try:
            data = import_tables([tmp_path / "b.npz"], states="x").trajectories
        except DataError:
            continue
        np.testing.assert_array_equal(data.outputs, whole.outputs)
        np.testing.assert_array_equal(data.time, whole.time)


def test_files_that_do_not_go_together(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("t,x [m]\n0,1\n1,2\n")
    (tmp_path / "b.csv").write_text("t,x [cm]\n0,1\n1,2\n")
    with pytest.raises(DataError, match=r"b\.csv: the unit of 'x' is 'cm', but 'm' in .*a\.csv\. Convert one"):
        import_tables([tmp_path / "a.csv", tmp_path / "b.csv"], states="x")
    (tmp_path / "c.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(UsageError, match="trajectory files and tables are imported together"):
        import_tables([tmp_path / "a.csv", tmp_path / "c.h5"], states="x")
    with pytest.raises(UsageError, match="--states, --hold: trajectory files already say what their channels are"):
        import_tables([tmp_path / "c.h5"], states="x", hold="zoh")
