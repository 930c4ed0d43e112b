"""Recordings from elsewhere as trajectories: CSV, NPZ, MAT, or several trajectory files of ours.

The kind of a file is judged by its first bytes, never by its name. The order of the steps is fixed: channels are
found, rows sorted, inputs put on their own clock (`recording`); angles are unwrapped and rates derived at the full
sampling rate (`derivatives`); then outputs are thinned and recordings cut into windows (`windows`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.channel_spec import Request, parse_channels
from snet_cli.data.derivatives import add_rate
from snet_cli.data.merging import merge
from snet_cli.data.recording import Recording, assemble
from snet_cli.data.splits import assign_split
from snet_cli.data.storage import MAX_BYTES
from snet_cli.data.table_arrays import read_arrays
from snet_cli.data.table_csv import read_csv
from snet_cli.data.table_files import HEAD, Kind, kind_of, read_bytes
from snet_cli.data.table_mat import open_mat5, open_mat73
from snet_cli.data.table_meaning import meaning_of, require_alike, unique_ids
from snet_cli.data.table_npz import open_npz
from snet_cli.data.trajectories import Trajectories
from snet_cli.data.windows import cut, thin
from snet_cli.errors import DataError, UsageError

IntArray = NDArray[np.int64]


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
    check_numbers(window, stride, decimate, init_window)
    kinds = kinds_of(paths, max_bytes)
    notes: list[str] = []
    if kinds[0] == "own":
        refuse_table_flags(states, inputs, time, by, hold, units, angles, derive)
        data = _read_own(paths, max_bytes, notes)
    else:
        recordings = _read_tables(paths, request_of(states, inputs, time, by), max_bytes, notes)
        data = _understand(recordings, hold, units, angles, derive, notes)
    if split:
        numbers, said = assign_split(split, data.ids)
        data, notes = replace(data, split=numbers), notes + said
    data = thin(data, decimate)
    check_thinned(data.row_size, data.ids, decimate)
    if window is not None:
        data, said = cut(data, window, window if stride is None else stride)
        data, notes = replace(data, ids=unique_ids(data.ids, data.ids)), notes + said
    if init_window:
        data = replace(data, init_window=init_windows(data.row_size, data.ids, init_window))
    return Imported(data, tuple(notes))


def check_numbers(window: float | None, stride: float | None, decimate: int, init_window: int) -> None:
    """Refuse lengths and counts that make no sense.

    Raises
    ------
    UsageError
    """
    for flag, value in (("--window", window), ("--stride", stride)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UsageError(f"{flag} is {value}, expected a positive time.", f"Write for example {flag} 10")
    if stride is not None and window is None:
        raise UsageError("--stride is given without --window.", "Add --window SECONDS, the length of a window.")
    if decimate < 1:
        raise UsageError(f"--decimate is {decimate}, expected 1 or more.", "--decimate 10 keeps every tenth row.")
    if init_window < 0:
        raise UsageError(f"--init-window is {init_window}, expected 0 or more.", "It counts samples.")


def kinds_of(paths: Sequence[Path], max_bytes: int) -> list[Kind]:
    """What each file is: tables, or all of them trajectory files of ours.

    Raises
    ------
    DataError
        For a file that is missing, too large or foreign.
    UsageError
        For no files, and for tables beside trajectory files.
    """
    if not paths:
        raise UsageError("no file was named.", "Name one or more: snet import run.csv -o run.h5 --states x,y")
    kinds = [kind_of(read_bytes(path, max_bytes, HEAD), str(path)) for path in paths]
    if "own" in kinds and set(kinds) != {"own"}:
        raise UsageError(
            "trajectory files and tables are imported together.", "Import the tables first, then merge the files."
        )
    return kinds


def request_of(states: str, inputs: str, time: str | None, by: str | None) -> Request:
    """The columns that are wanted.

    Raises
    ------
    UsageError
    """
    request = Request(parse_channels(states, "--states"), parse_channels(inputs, "--inputs"), time, by)
    if not request.states:
        raise UsageError("--states is missing.", "Name the columns that are states: --states x,y=Y")
    return request


def refuse_table_flags(
    states: str, inputs: str, time: str | None, by: str | None, hold: str, units: str, angles: str, derive: str
) -> None:
    """Trajectory files already say what their channels are.

    Raises
    ------
    UsageError
    """
    flags = ("--states", "--inputs", "--time", "--by", "--hold", "--units", "--angle", "--derive")
    values = (states, inputs, time, by, hold, units, angles, derive)
    given = [flag for flag, value in zip(flags, values, strict=True) if value]
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
    require_alike(recordings)
    ids = unique_ids([recording.id for recording in recordings], longer)
    return [replace(recording, id=name) for recording, name in zip(recordings, ids, strict=True)]


def _understand(
    recordings: Sequence[Recording], hold: str, units: str, angles: str, derive: str, notes: list[str]
) -> Trajectories:
    """Trajectories with their units, angles and derived channels."""
    meaning = meaning_of(recordings, hold, units, angles, derive)
    data, said = assemble(recordings, [r.id for r in recordings], meaning.hold, meaning.units)
    notes += said
    data = meaning.applied(data)
    meaning.check_rates(data.output_names)
    for name, of in meaning.rates.items():
        data, note = add_rate(data, name, of)
        notes.append(note)
    stated = {name: meaning.stated[name] for name in meaning.rates if name in meaning.stated}
    return replace(data, units={**data.units, **stated})


def check_thinned(row_size: IntArray, ids: Sequence[str], every: int) -> None:
    """Refuse to leave a recording with a single sample.

    Raises
    ------
    DataError
    """
    short = np.flatnonzero(row_size < 2)
    if every > 1 and short.size:
        raise DataError(
            f"--decimate {every} leaves '{ids[short[0]]}' {int(row_size[short[0]])} sample, expected at least two.",
            "Keep more rows.",
        )


def init_windows(row_size: IntArray, ids: Sequence[str], samples: int) -> IntArray:
    """Leading samples that are not scored, for each trajectory.

    Raises
    ------
    DataError
        If they are all that a trajectory has.
    """
    short = np.flatnonzero(row_size <= samples)
    if short.size:
        raise DataError(
            f"'{ids[short[0]]}' has {int(row_size[short[0]])} samples: an init window of {samples} leaves none to "
            "score.",
            "Choose a shorter --init-window.",
        )
    return np.full(row_size.size, samples, np.int64)
