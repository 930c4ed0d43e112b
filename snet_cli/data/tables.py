"""Recordings from elsewhere as trajectories: CSV, NPZ, MAT, or several trajectory files of ours.

The kind of a file is judged by its first bytes, never by its name. The order of the steps is fixed: channels are
found, rows sorted, inputs put on their own clock (`recording`); angles are unwrapped and rates derived at the full
sampling rate (`derivatives`); then outputs are thinned and recordings cut into windows (`windows`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from snet_cli.data.channel_spec import (
    DEGREES,
    Request,
    check_known,
    parse_angles,
    parse_channels,
    parse_derive,
    parse_hold,
    parse_units,
    shorten,
)
from snet_cli.data.derivatives import add_rate, unwrap_angle
from snet_cli.data.merging import merge
from snet_cli.data.recording import Recording, assemble
from snet_cli.data.splits import assign_split
from snet_cli.data.storage import MAX_BYTES
from snet_cli.data.table_arrays import read_arrays
from snet_cli.data.table_csv import read_csv
from snet_cli.data.table_mat import open_mat5, open_mat73
from snet_cli.data.table_npz import open_npz
from snet_cli.data.trajectories import Trajectories
from snet_cli.data.windows import cut, thin
from snet_cli.errors import DataError, UsageError

ID_BYTES = 64
"""Longest name of a trajectory that a file can hold."""

TIME_UNITS = ("s", "ms", "us", "µs", "ns", "min", "h", "day", "week", "month", "year")
"""Units that a time column may carry in its name: ``t_ms``, ``year``."""

HEAD = 65_536
"""First bytes by which the kind of a file is judged."""

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAT_USER_BLOCK = 512

Kind = Literal["csv", "npz", "mat5", "mat73", "own"]

FOREIGN = (
    (b"\x93NUMPY", "is a single NumPy array", "Save all arrays of the recording with numpy.savez."),
    (b"PAR1", "is a Parquet file", "Export it as CSV."),
    (b"ARROW1", "is an Arrow file", "Export it as CSV."),
    (b"\x1f\x8b", "is packed with gzip", "Unpack it first."),
    (b"BZh", "is packed with bzip2", "Unpack it first."),
    (b"\xfd7zXZ", "is packed with xz", "Unpack it first."),
    (b"\x28\xb5\x2f\xfd", "is packed with zstd", "Unpack it first."),
    (b"%PDF", "is a PDF document", "Export the table as CSV."),
    (b"CDF\x01", "is a netCDF 3 file", "Export its variables as NPZ or CSV."),
    (b"CDF\x02", "is a netCDF 3 file", "Export its variables as NPZ or CSV."),
    (b"\x80\x02", "is a pickle, which is never loaded", "Save the arrays with numpy.savez."),
    (b"\x80\x03", "is a pickle, which is never loaded", "Save the arrays with numpy.savez."),
    (b"\x80\x04", "is a pickle, which is never loaded", "Save the arrays with numpy.savez."),
    (b"\x80\x05", "is a pickle, which is never loaded", "Save the arrays with numpy.savez."),
)
"""First bytes of files that users try, what they are, and the way out."""


class Imported(NamedTuple):
    """What an import gives: the trajectories, and sentences that tell the user what was noticed or decided."""

    trajectories: Trajectories
    notes: tuple[str, ...]


def import_tables(
    paths: Sequence[Path],
    *,
    states: str = "",
    inputs: str = "",
    time: str | None = None,
    by: str | None = None,
    units: str = "",
    hold: str = "",
    angles: str = "",
    window: float | None = None,
    stride: float | None = None,
    decimate: int = 1,
    derive: str = "",
    init_window: int = 0,
    split: str = "",
    max_bytes: int = MAX_BYTES,
) -> Imported:
    """Trajectories of recorded tables.

    Parameters
    ----------
    paths : sequence of Path
        CSV, NPZ and MAT files, or trajectory files of ours, which are merged. One recording per file, per value of
        `by`, or per number of keys like ``001_x``.
    states, inputs : str
        ``x,y=Y``: channel x from column x, y from column Y; ``x=X,Y,yaw``: the columns of a 2-D array x.
    time : str, optional
        Column of the times; by default the single one named t, time or the like.
    by : str, optional
        Column whose values separate recordings.
    units : str
        ``x=m,v=m/s``; wins over units in the header. The time's unit goes by the time column's name.
    hold : str
        zoh (default), linear or cubic for all inputs, or ``u1=zoh,u2=linear``.
    angles : str
        ``yaw,pitch=deg``: channels converted to rad and unwrapped within each recording.
    window, stride : float, optional
        Cut recordings into windows of this length, one each stride (default: one after the other), in time units.
    decimate : int
        Keep every N-th row of the outputs.
    derive : str
        ``v=d(q)``: new channel v, the rate of q.
    init_window : int
        Leading samples of each trajectory that start a forecast and are not scored.
    split : str
        ``valid=run_3,test=71-80``: recordings by id, pattern or position from 1.
    max_bytes : int
        Largest size of a file, and of what it declares to hold.

    Raises
    ------
    UsageError
        For an option that makes no sense or names no channel.
    DataError
        For a file that is missing, damaged, foreign or senseless; the message names file and row.
    """
    _check_numbers(window, stride, decimate, init_window)
    if not paths:
        raise UsageError("no file was named.", "Name one or more: snet import run.csv -o run.h5 --states x,y")
    kinds = {kind_of(read_bytes(path, max_bytes, HEAD), str(path)) for path in paths}
    notes: list[str] = []
    if kinds == {"own"}:
        _refuse_table_flags(
            {
                "--states": states,
                "--inputs": inputs,
                "--time": time,
                "--by": by,
                "--hold": hold,
                "--units": units,
                "--angle": angles,
                "--derive": derive,
            }
        )
        data = _read_own(paths, max_bytes, notes)
    elif "own" in kinds:
        raise UsageError(
            "trajectory files and tables are imported together.", "Import the tables first, then merge the files."
        )
    else:
        request = Request(parse_channels(states, "--states"), parse_channels(inputs, "--inputs"), time, by)
        if not request.states:
            raise UsageError("--states is missing.", "Name the columns that are states: --states x,y=Y")
        recordings = _read_tables(paths, request, max_bytes, notes)
        data = _understand(recordings, hold, units, angles, derive, notes)
    if split:
        numbers, said = assign_split(split, data.ids)
        data, notes = replace(data, split=numbers), notes + said
    data = thin(data, decimate)
    _check_thinned(data, decimate)
    if window is not None:
        data, said = cut(data, window, window if stride is None else stride)
        data, notes = replace(data, ids=unique_ids(data.ids, data.ids)), notes + said
    return Imported(_with_init_window(data, init_window), tuple(notes))


def read_bytes(path: Path, max_bytes: int, first: int = -1) -> bytes:
    """The whole file, or its first bytes.

    Raises
    ------
    DataError
        If it is missing, not readable, empty, or larger than `max_bytes`.
    """
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise DataError(
                f"{path}: the file has {size} bytes, more than the limit of {max_bytes}.", "Raise --max-bytes."
            )
        with path.open("rb") as stream:
            data = stream.read(first)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file.", "Check the name.") from None
    except IsADirectoryError:
        raise DataError(f"{path}: this is a folder, expected a file.", f"Name its files: {path}/*.csv") from None
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read ({error.strerror}).", "Check its permissions.") from None
    if not data:
        raise DataError(f"{path}: the file is empty.", "Check that the recording was written.")
    return data


def kind_of(data: bytes, source: str) -> Kind:
    """What a file is, by its first bytes.

    Raises
    ------
    DataError
        For a file of another kind.
    """
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "npz"
    if data.startswith(HDF5_SIGNATURE):
        return "own"
    if data[MAT_USER_BLOCK:].startswith(HDF5_SIGNATURE):
        return "mat73"
    if data[124:128] in (b"\x00\x01IM", b"\x01\x00MI"):
        return "mat5"
    for signature, what, hint in FOREIGN:
        if data.startswith(signature):
            raise DataError(f"{source}: the file {what}, expected CSV, NPZ or MAT.", hint)
    if b"\x00" in data[:HEAD] and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(
            f"{source}: the file is binary and of no known kind, expected CSV, NPZ or MAT (v5 to v7.3).",
            "Export the recording as CSV, or save it with numpy.savez.",
        )
    return "csv"


def unique_ids(ids: Sequence[str], longer: Sequence[str]) -> tuple[str, ...]:
    """Names of trajectories: where several want the same one, the `longer` form, and a number if that is taken too.

    Names that a file cannot hold are mended: control characters and "/" become "_", the end of a long name is cut.
    """
    wanted = Counter(ids)
    taken: set[str] = set()
    out: list[str] = []
    for short, long in zip(ids, longer, strict=True):
        base = _fitting(short if wanted[short] == 1 else long, ID_BYTES)
        name, number = base, 1
        while name in taken:
            number += 1
            name = f"{_fitting(base, ID_BYTES - len(str(number)) - 1)}-{number}"
        taken.add(name)
        out.append(name)
    return tuple(out)


def _fitting(name: str, size: int) -> str:
    clean = "".join(c if c.isprintable() and c != "/" else "_" for c in name).strip() or "_"
    return clean.encode("utf-8", "replace")[:size].decode("utf-8", "ignore")


def _check_numbers(window: float | None, stride: float | None, decimate: int, init_window: int) -> None:
    for flag, value in (("--window", window), ("--stride", stride)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UsageError(f"{flag} is {value}, expected a positive time.", f"Write for example {flag} 10")
    if stride is not None and window is None:
        raise UsageError("--stride is given without --window.", "Add --window SECONDS, the length of a window.")
    if decimate < 1:
        raise UsageError(f"--decimate is {decimate}, expected 1 or more.", "--decimate 10 keeps every tenth row.")
    if init_window < 0:
        raise UsageError(f"--init-window is {init_window}, expected 0 or more.", "It counts samples.")


def _refuse_table_flags(flags: dict[str, str | None]) -> None:
    """Trajectory files already say what their channels are."""
    given = [flag for flag, value in flags.items() if value]
    if given:
        raise UsageError(
            f"{', '.join(given)}: trajectory files already say what their channels are.", "Leave the option out."
        )


def _read_own(paths: Sequence[Path], max_bytes: int, notes: list[str]) -> Trajectories:
    from snet_cli.data.trajectory_file import load_trajectories  # h5py costs 0.1 s at import

    files = [load_trajectories(path, max_bytes=max_bytes) for path in paths]
    ids = [name for file in files for name in file.ids]
    longer = [f"{path.stem}-{name}" for path, file in zip(paths, files, strict=True) for name in file.ids]
    merged, said = merge(files, [str(path) for path in paths], unique_ids(ids, longer))
    notes += said
    return merged


def _read_tables(paths: Sequence[Path], request: Request, max_bytes: int, notes: list[str]) -> list[Recording]:
    """All recordings of all files, with unique ids and the same channels."""
    recordings: list[Recording] = []
    longer: list[str] = []
    for path in paths:
        data, source, stem = read_bytes(path, max_bytes), str(path), path.stem
        kind = kind_of(data, source)
        if kind == "csv":
            found = read_csv(data, source, stem, request)
        else:
            opener = {"npz": open_npz, "mat5": open_mat5, "mat73": open_mat73}[kind]
            found = read_arrays(opener(data, source, stem, max_bytes), request, notes)
        recordings += found
        longer += [stem if recording.id == stem else f"{stem}-{recording.id}" for recording in found]
    first = recordings[0]
    for other in recordings[1:]:
        if (other.output_names, other.input_names) != (first.output_names, first.input_names):
            raise DataError(
                f"{other.source}: the channels are {other.output_names + other.input_names}, but "
                f"{first.output_names + first.input_names} in {first.source}.",
                "Import files with the same columns, or rename them: --states name=column",
            )
        for name, unit in other.units.items():
            if first.units.get(name, unit) != unit:
                raise DataError(
                    f"{other.source}: the unit of '{shorten(name)}' is '{shorten(unit)}', but "
                    f"'{shorten(first.units[name])}' in {first.source}.",
                    "Convert one of the files.",
                )
    ids = unique_ids([recording.id for recording in recordings], longer)
    return [replace(recording, id=name) for recording, name in zip(recordings, ids, strict=True)]


def _understand(
    recordings: Sequence[Recording], hold: str, units: str, angles: str, derive: str, notes: list[str]
) -> Trajectories:
    """Trajectories with their units, angles and derived channels."""
    first = recordings[0]
    rates = parse_derive(derive)
    names = (*first.output_names, *rates, *first.input_names)
    for name, count in Counter(names).items():
        if count > 1:
            raise UsageError(f"two channels are named '{shorten(name)}'.", "Rename one: --states name=column")
    stated = parse_units(units)
    for name in stated:
        check_known(name, [*names, first.time_name], "--units")
    found = {name: unit for recording in reversed(recordings) for name, unit in recording.units.items()}
    known = found | stated
    turned = parse_angles(angles)
    for name in turned:
        check_known(name, first.output_names, "--angle", "state")
    data, said = assemble(recordings, [r.id for r in recordings], parse_hold(hold, first.input_names), known)
    notes += said
    data = replace(data, time_unit=known.get(first.time_name) or _unit_in_name(first.time_name))
    for name, unit in turned.items():
        degrees = unit == "deg" or (unit is None and known.get(name, "").lower() in DEGREES)
        data = unwrap_angle(data, name, degrees)
    for name, of in rates.items():
        check_known(of, data.output_names, "--derive", "state")
        data, note = add_rate(data, name, of)
        notes.append(note)
    return replace(data, units={**data.units, **{name: stated[name] for name in rates if name in stated}})


def _unit_in_name(name: str) -> str:
    """The unit of time that a column's name tells (``t_ms``, ``year``), else seconds."""
    last = name.replace(" ", "_").split("_")[-1].lower()
    singular = last[:-1] if last.endswith("s") and last[:-1] in TIME_UNITS[5:] else last
    return singular if singular in TIME_UNITS else "s"


def _check_thinned(data: Trajectories, every: int) -> None:
    short = np.flatnonzero(data.row_size < 2)
    if every > 1 and short.size:
        raise DataError(
            f"--decimate {every} leaves '{data.ids[short[0]]}' {int(data.row_size[short[0]])} sample, expected at "
            "least two.",
            "Keep more rows.",
        )


def _with_init_window(data: Trajectories, samples: int) -> Trajectories:
    if samples == 0:
        return data
    short = np.flatnonzero(data.row_size <= samples)
    if short.size:
        raise DataError(
            f"'{data.ids[short[0]]}' has {int(data.row_size[short[0]])} samples: an init window of {samples} leaves "
            "none to score.",
            "Choose a shorter --init-window.",
        )
    return replace(data, init_window=np.full(len(data), samples, np.int64))
