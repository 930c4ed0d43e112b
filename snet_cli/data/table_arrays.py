"""Arrays by name (NPZ, MAT) as recordings.

``--states x=X,Y,yaw`` names the columns of a 2-D array x; ``a=b`` with a 1-D array b is channel a from array b, as
in CSV. Which of the two is meant follows from what the file holds: the side of "=" that is an array. Keys such as
``001_t``, ``001_x``, ``001_u`` are one recording per number; arrays without a number are shared by all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.channel_spec import ChannelItem, Request, check_name, listing, nearest, shorten
from snet_cli.data.recording import Recording
from snet_cli.data.table_csv import find_time, group_rows
from snet_cli.errors import DataError

FloatArray = NDArray[np.float64]

SKIPPED = "_"
"""Stands for a column of a 2-D array that is not wanted."""

NUMBERED = re.compile(r"(\d+)_(.+)")


@dataclass(frozen=True)
class ArrayFile:
    """The arrays of a file, read when asked for.

    Attributes
    ----------
    source, stem : str
        The file for messages, and its stem.
    shapes : mapping of str to tuple of int
        What can be read: arrays of numbers (and of texts, for ``--by``).
    refused : mapping of str to str
        What cannot, and why.
    read : callable
        The array of a name.
    """

    source: str
    stem: str
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], NDArray[Any]]
    refused: Mapping[str, str] = field(default_factory=dict)


class Channel(NamedTuple):
    """One channel: its name, the array it comes from, and the column there (None = the whole array)."""

    name: str
    array: str
    column: int | None


@dataclass(frozen=True)
class View:
    """The arrays of one recording by the names the user knows, without the number of a group."""

    file: ArrayFile
    id: str
    keys: Mapping[str, str]

    @property
    def source(self) -> str:
        """The file and, if it holds several recordings, which one."""
        return self.file.source if self.id == self.file.stem else f"{self.file.source}, '{self.id}'"

    def __contains__(self, name: str) -> bool:
        return name in self.keys

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array, a matrix with one row or column as the vector it means."""
        shape = self.file.shapes[self.keys[name]]
        return tuple(size for size in shape if size != 1) if len(shape) == 2 and 1 in shape else shape

    def missing(self, name: str) -> DataError:
        """The error for an array that is not there."""
        if name in self.file.refused:
            return DataError(
                f"{self.source}: '{shorten(name)}' {self.file.refused[name]}.", "Save it as a plain array of numbers."
            )
        hint = f"{nearest(name, self.keys.keys())}It has {listing(self.keys)}."
        return DataError(f"{self.source}: there is no array '{shorten(name)}'.", hint)

    def read(self, name: str) -> FloatArray:
        """An array of numbers, float64, in the shape that `shape` says."""
        values = self.file.read(self.keys[name])
        if values.dtype.kind not in "fiub":
            raise DataError(
                f"{self.source}: '{shorten(name)}' holds {values.dtype}, expected real numbers.",
                "Convert it to numbers; times count from any zero in seconds.",
            )
        return values.astype(np.float64).reshape(self.shape(name))


def read_arrays(file: ArrayFile, request: Request, notes: list[str]) -> list[Recording]:
    """Recordings of a file of arrays: one, one per numbered group, or one per value of ``--by``.

    Raises
    ------
    DataError
        For an array that is not there or no array of numbers, and for shapes that do not fit together.
    """
    recordings: list[Recording] = []
    for view in views(file, request):
        recordings += read_view(view, request, notes)
    return recordings


def views(file: ArrayFile, request: Request) -> list[View]:
    """One view per recording: the whole file, or each number of keys like ``001_x``."""
    plain = View(file, file.stem, {name: name for name in file.shapes})
    groups: dict[int, tuple[str, dict[str, str]]] = {}
    shared = {}
    for name in file.shapes:
        match = NUMBERED.fullmatch(name)
        if match is None:
            shared[name] = name
        else:
            groups.setdefault(int(match[1]), (match[1], {}))[1][match[2]] = name
    asked = [side for item in request.states for side in item if side is not None]
    bases = {base for _, keys in groups.values() for base in keys}
    if not groups or any(side in file.shapes for side in asked) or not any(side in bases for side in asked):
        return [plain]
    return [View(file, digits, shared | keys) for _, (digits, keys) in sorted(groups.items())]


def read_view(view: View, request: Request, notes: list[str]) -> list[Recording]:
    """The recordings of one view."""
    time_name = request.time
    if time_name is None:
        asked = {side for item in (*request.states, *request.inputs) for side in item}
        free = [name for name in view.keys if name not in asked and name != request.by]
        time_name = find_time(free, view.source, list(view.keys))
    time = read_time(view, time_name, request.states, notes)
    states = resolve(view, request.states, time.size, "--states", notes)
    inputs = resolve(view, request.inputs, time.size, "--inputs", notes)
    groups = {view.id: np.arange(time.size)}
    if request.by is not None:
        groups = group_rows(
            read_labels(view, request.by, time.size), lambda row: f"{view.source}, row {row + 1}", request.by
        )
        if view.id != view.file.stem:
            groups = {f"{view.id}-{label}": rows for label, rows in groups.items()}
    x = columns(view, states, time.size, "--states")
    u = columns(view, inputs, time.size, "--inputs")
    return [
        Recording(
            id=label,
            source=view.source,
            row_word="row",
            rows=rows + 1,
            time=time[rows],
            outputs=x[rows],
            inputs=u[rows],
            output_names=tuple(channel.name for channel in states),
            input_names=tuple(channel.name for channel in inputs),
            time_name=time_name,
        )
        for label, rows in groups.items()
    ]


def read_time(view: View, name: str, states: Sequence[ChannelItem], notes: list[str]) -> FloatArray:
    """The sample times; a single number is the sampling interval of rows that start at time 0."""
    if name not in view:
        raise view.missing(name)
    time = view.read(name)
    if time.ndim > 1:
        raise DataError(
            f"{view.source}: the time '{shorten(name)}' has shape {_written(time.shape)}, expected one value per row.",
            "Name a 1-D array with --time.",
        )
    if time.ndim == 1 and time.size != 1:
        return time
    sides = [side for item in states for side in item if side is not None and side in view]
    rows = next((max(view.shape(side)) for side in sides if view.shape(side)), 1)
    if rows <= 1:
        return time.reshape(1)
    _note(notes, f"'{name}' is a single number, taken as the sampling interval; the times start at 0.")
    return np.arange(rows, dtype=np.float64) * float(time.reshape(()))


def resolve(view: View, items: Sequence[ChannelItem], rows: int, flag: str, notes: list[str]) -> list[Channel]:
    """Which array and column each item of ``--states`` or ``--inputs`` means (see the module docstring)."""
    channels: list[Channel] = []
    remaining = list(items)
    while remaining:
        item = remaining.pop(0)
        source = item.right if item.right is not None and item.right in view else item.left
        if source not in view:
            raise view.missing(item.right if item.right is not None else item.left)
        width = _width(view, source, _lengths(rows, flag))
        if source == item.right or (item.right is None and width is None):
            if width is not None:
                raise DataError(
                    f"{view.source}: '{shorten(source)}' has {width} columns, expected a 1-D array for '{item.left}'.",
                    f"Name its columns: {flag} {shorten(source)}=a,b,...",
                )
            channels.append(Channel(check_name(item.left, flag), source, None))
            continue
        if item.right is None:
            names = [f"{source}{number}" for number in range(1, (width or 1) + 1)]
            _note(notes, f"the columns of '{source}' are named {names[0]} ... {names[-1]}.")
        else:
            names = [item.right]
            while len(names) < (width or 1) and remaining and remaining[0].right is None:
                if remaining[0].left in view:
                    break
                names.append(remaining.pop(0).left)
            if width is not None and len(names) < width:
                left_out = f"the {len(names)} names given are its first, the others are left out."
                _note(notes, f"'{source}' has {width} columns; {left_out}")
        wanted = [(column, name) for column, name in enumerate(names) if name != SKIPPED]
        channels += [
            Channel(check_name(name, flag), source, None if width is None else column) for column, name in wanted
        ]
    return channels


def columns(view: View, channels: Sequence[Channel], rows: int, flag: str) -> FloatArray:
    """The values of the channels, (rows, channels); a last row that an input lacks is NaN."""
    out = np.full((rows, len(channels)), np.nan)
    arrays = {channel.array: view.read(channel.array) for channel in channels}
    for number, channel in enumerate(channels):
        values = arrays[channel.array]
        if channel.column is not None:
            upright = values.shape[0] in _lengths(rows, flag)
            values = (values if upright else values.T)[:, channel.column]
        out[: values.shape[0], number] = values
    return out


def read_labels(view: View, name: str, rows: int) -> list[str]:
    """The ``--by`` array as texts; whole numbers without a decimal point."""
    if name not in view:
        raise view.missing(name)
    values = view.file.read(view.keys[name]).reshape(view.shape(name))
    if values.shape != (rows,):
        raise DataError(
            f"{view.source}: '{shorten(name)}', named by --by, has shape {_written(values.shape)}, expected ({rows},).",
            "Name an array with one value per row.",
        )
    if values.dtype.kind == "f":
        return ["" if np.isnan(value) else f"{value:.15g}" for value in values]
    return [str(value) for value in values]


def _lengths(rows: int, flag: str) -> tuple[int, ...]:
    """Numbers of rows that fit: an input may be one row shorter, its last row is held."""
    return (rows,) if flag == "--states" else (rows, rows - 1)


def _width(view: View, name: str, lengths: tuple[int, ...]) -> int | None:
    """Number of columns of a 2-D array of the right length, None for a 1-D array."""
    shape = view.shape(name)
    if len(shape) == 1 and shape[0] in lengths:
        return None
    if len(shape) == 2 and shape[0] in lengths:
        return shape[1]
    if len(shape) == 2 and shape[1] in lengths:
        return shape[0]
    raise DataError(
        f"{view.source}: '{shorten(name)}' has shape {_written(shape)}, but there are {lengths[0]} times.",
        "States need one row per time; inputs one row per time, or one fewer.",
    )


def _written(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def _note(notes: list[str], text: str) -> None:
    """Say a thing once, however many recordings it holds for."""
    if text not in notes:
        notes.append(text)
