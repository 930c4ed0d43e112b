"""A recording as it was read, and what makes trajectories of recordings.

Readers (CSV, NPZ, MAT) only find columns. Everything that a table means is decided here, once for all formats:
rows are sorted by time, a time that occurs twice is an error, inputs get a clock of their own without holes, and
rows that hold no output leave the outputs' clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.channel_spec import listing
from snet_cli.data.signals import Inputs, Intersample, SampledInputs
from snet_cli.data.trajectories import Trajectories
from snet_cli.errors import DataError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Recording:
    """One recording: K rows of a table with their channels found, in the order of the file.

    Attributes
    ----------
    id : str
        File stem, value of the ``--by`` column, or number of an array group.
    source : str
        The file, as the user wrote it; only for messages.
    row_word : str
        "line" or "row": what `rows` counts.
    rows : ndarray, shape (K,)
        Place of each row in the file, from 1.
    time : ndarray, shape (K,)
    outputs : ndarray, shape (K, d)
        NaN = not measured.
    inputs : ndarray, shape (K, m)
        NaN = not recorded.
    output_names, input_names : tuple of str
    time_name : str
        Name of the time column, which may tell the unit (``t_s``).
    units : mapping of str to str
        What the file itself says, the time column included.
    """

    id: str
    source: str
    row_word: str
    rows: IntArray
    time: FloatArray
    outputs: FloatArray
    inputs: FloatArray
    output_names: tuple[str, ...]
    input_names: tuple[str, ...]
    time_name: str
    units: Mapping[str, str] = field(default_factory=dict)

    def place(self, row: int) -> str:
        """Where a row stands, for a message: ``run.csv, line 17``."""
        return f"{self.source}, {self.row_word} {int(self.rows[row])}"


class Assembled(NamedTuple):
    """What a trajectory has of a recording: samples (K',) and (K', d), its inputs' clock (k,) and values (k, m)."""

    time: FloatArray
    outputs: FloatArray
    clock: FloatArray
    inputs: FloatArray


@dataclass
class Repairs:
    """What was done to recordings, so that the user hears it once and not once per recording."""

    unsorted: int = 0
    unmeasured: int = 0
    cells: int = 0
    recordings: int = 0

    def notes(self) -> list[str]:
        """Sentences for the user."""
        notes = []
        if self.unsorted:
            notes.append(f"sorted the rows of {_counted(self.unsorted, 'recording')} by time.")
        if self.unmeasured:
            notes.append(
                f"{_counted(self.unmeasured, 'row')} without any state value: their inputs are kept, not their times."
            )
        if self.cells:
            notes.append(
                f"filled {_counted(self.cells, 'missing input value')} in {_counted(self.recordings, 'recording')}: "
                "zoh inputs keep the value before, linear and cubic ones are interpolated, the ends are held."
            )
        return notes


def assemble(
    recordings: Sequence[Recording], ids: Sequence[str], hold: Sequence[Intersample], units: Mapping[str, str]
) -> tuple[Trajectories, list[str]]:
    """Trajectories of the recordings, one each, and what the user should know about them.

    Parameters
    ----------
    recordings : sequence of Recording
        All with the same channels.
    ids : sequence of str
        A unique name for each.
    hold : sequence of {"zoh", "linear", "cubic"}
        How each input continues between its samples.
    units : mapping of str to str
        Units of the channels.

    Raises
    ------
    DataError
        For a time that is not finite or stands twice, an infinite value, a recording with fewer than two samples, a
        channel or an input without any value. The message names the file and the row.
    """
    repairs = Repairs()
    parts = [assemble_one(recording, hold, repairs) for recording in recordings]
    trajectories = joined(recordings[0], parts, ids, hold, units)
    facts = ChannelFacts(len(trajectories))
    facts.add(trajectories)
    return trajectories, repairs.notes() + facts.notes(trajectories, trajectories.ids)


def assemble_one(recording: Recording, hold: Sequence[Intersample], repairs: Repairs) -> Assembled:
    """What `assemble` makes of one recording."""
    order = time_order(recording)
    repairs.unsorted += not np.array_equal(order, np.arange(order.size))
    time, outputs = recording.time[order], recording.outputs[order]
    measured = np.isfinite(outputs).any(axis=1)
    repairs.unmeasured += int(np.sum(~measured))
    require_samples(recording, int(measured.sum()))
    if not recording.input_names:
        return Assembled(time[measured], outputs[measured], np.zeros(0), np.zeros((0, 0)))
    inputs = recording.inputs[order]
    require_inputs(recording, known_inputs(recording))
    keep, values, missing = input_clock(time, inputs, hold)
    # the hold after the last row is the documented rule for tables one row shorter: no repair to speak of
    repaired = int(missing[:-1].sum())
    repairs.cells += repaired
    repairs.recordings += repaired > 0
    return Assembled(time[measured], outputs[measured], time[keep], values)


def joined(
    first: Recording,
    parts: Sequence[Assembled],
    ids: Sequence[str],
    hold: Sequence[Intersample],
    units: Mapping[str, str],
) -> Trajectories:
    """Trajectories of what was assembled; `first` is any of the recordings, which all have the same channels."""
    return Trajectories(
        ids=tuple(ids),
        row_size=np.array([part.time.size for part in parts], dtype=np.int64),
        time=np.concatenate([part.time for part in parts]),
        outputs=np.concatenate([part.outputs for part in parts]),
        output_names=first.output_names,
        inputs=_inputs(first.input_names, parts, hold, units),
        units={name: units.get(name, "") for name in (*first.output_names, *first.input_names)},
    )


def time_order(recording: Recording) -> IntArray:
    """Row order by time; an error for a time that is not finite or stands twice, and for an infinite value."""
    require_finite_times(recording)
    order = np.argsort(recording.time, kind="stable")
    require_single_times(recording, order)
    require_finite_values(recording)
    return order


def require_finite_times(recording: Recording) -> None:
    """Refuse a time that is missing or infinite."""
    bad = np.flatnonzero(~np.isfinite(recording.time))
    if bad.size:
        what = "is missing" if np.isnan(recording.time[bad[0]]) else "is infinite"
        raise DataError(
            f"{recording.place(bad[0])}: the time in '{recording.time_name}' {what}, expected a finite number.",
            "Remove the row or give it its time.",
        )


def require_single_times(recording: Recording, order: IntArray) -> None:
    """Refuse a time that stands twice."""
    time = recording.time
    again = np.flatnonzero(time[order][1:] == time[order][:-1])
    if again.size:
        earlier, later = order[again[0]], order[again[0] + 1]
        raise DataError(
            f"{recording.place(later)}: the time {time[later]:.15g} stands there a second time "
            f"(first in {recording.row_word} {int(recording.rows[earlier])}).",
            "Remove one of the rows; if they belong to different recordings, separate them with --by COLUMN.",
        )


def require_finite_values(recording: Recording) -> None:
    """Refuse an infinite value, of an output first."""
    for names, values in ((recording.output_names, recording.outputs), (recording.input_names, recording.inputs)):
        infinite = np.argwhere(np.isinf(values))
        if infinite.size:
            row, channel = infinite[0]
            raise DataError(
                f"{recording.place(row)}: '{names[channel]}' is infinite, expected a finite number.",
                "Leave the cell empty if the value was not measured.",
            )


def require_samples(recording: Recording, measured: int) -> None:
    """Refuse a recording with fewer than two samples that hold a value."""
    if measured >= 2:
        return
    if measured == 0 and recording.time.size:
        raise DataError(
            f"{recording.source}: recording '{recording.id}' holds no value of {listing(recording.output_names)}.",
            "Check the columns named by --states; leave the recording out if nothing was measured.",
        )
    raise DataError(
        f"{recording.source}: recording '{recording.id}' has {_counted(measured, 'sample')}, expected at least two.",
        "Leave it out, or check that --by names the column that separates the recordings.",
    )


def known_inputs(recording: Recording) -> NDArray[np.bool_]:
    """Of which inputs any value is known, shape (m,)."""
    return np.asarray(np.any(~np.isnan(recording.inputs), axis=0), bool)


def require_inputs(recording: Recording, known: NDArray[np.bool_]) -> None:
    """Refuse an input of which no value is known at all; `known` (m,) says whether any is."""
    for name, any_known in zip(recording.input_names, known, strict=True):
        if not any_known:
            raise DataError(
                f"{recording.source}: the input '{name}' of recording '{recording.id}' holds no value at all.",
                "An input has to be known; leave it out of --inputs, or leave the recording out.",
            )


def input_clock(
    time: FloatArray, values: FloatArray, hold: Sequence[Intersample]
) -> tuple[NDArray[np.bool_], FloatArray, NDArray[np.bool_]]:
    """Rows that make the clock of the inputs (K,), their values (k, m) without holes, and where these were (k, m).

    All inputs of a trajectory share one clock. A row in which every input is missing leaves it, except the first and
    the last, for the inputs have to cover all samples. Where some are missing, each is filled by its own hold: zoh
    keeps the value before, linear and cubic inputs are interpolated linearly; the ends are held.
    An input table one row shorter than the states is the case of a last row that is missing.
    """
    missing = np.isnan(values)
    keep: NDArray[np.bool_] = np.any(~missing, axis=1)
    keep[0] = keep[-1] = True
    time, values, missing = time[keep], values[keep].copy(), missing[keep]
    for channel, kind in enumerate(hold):
        holes, known = missing[:, channel], np.flatnonzero(~missing[:, channel])
        if not holes.any():
            continue
        if kind == "zoh":
            before = np.searchsorted(known, np.flatnonzero(holes)) - 1
            values[holes, channel] = values[known[np.maximum(before, 0)], channel]
        else:
            values[holes, channel] = np.interp(time[holes], time[known], values[known, channel])
    return keep, values, missing


class ChannelFacts:
    """What is constant or missing in the channels of trajectories that come in one slice after the other.

    Parameters
    ----------
    count : int
        Trajectories in all.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.seen = np.zeros((0, count), bool)
        self.outputs: list[Spread] = []
        self.inputs: list[Spread] = []

    def add(self, trajectories: Trajectories, first: int = 0) -> None:
        """Take a slice, or a part of one trajectory; its first one is number `first` of all."""
        owner = first + trajectories.trajectory_of_row()
        if not self.outputs:
            self.outputs = [Spread() for _ in trajectories.output_names]
            self.seen = np.zeros((len(self.outputs), self.count), bool)
        for channel, spread in enumerate(self.outputs):
            values = trajectories.outputs[:, channel]
            measured = np.isfinite(values)
            self.seen[channel, owner[measured]] = True
            spread.add(values[measured])
        if (sampled := trajectories.inputs.sampled) is not None:
            self.inputs = self.inputs or [Spread() for _ in sampled.names]
            for spread, values in zip(self.inputs, sampled.values.T, strict=True):
                spread.add(values)

    def notes(self, shell: Trajectories, ids: Sequence[str]) -> list[str]:
        """Notes on channels that are constant or missing in places.

        Parameters
        ----------
        shell : Trajectories
            For the names of the channels.
        ids : sequence of str
            Of all trajectories.

        Raises
        ------
        DataError
            If a state has no value in any trajectory.
        """
        notes = []
        for name, seen, spread in zip(shell.output_names, self.seen, self.outputs, strict=True):
            if not seen.any():
                raise DataError(
                    f"the state '{name}' holds no value at all.",
                    "Check the column; leave it out of --states if it was not measured.",
                )
            absent = np.flatnonzero(~seen)
            if absent.size:
                notes.append(f"'{name}' was not measured in {listing(ids[int(i)] for i in absent)}.")
            if spread.constant:
                notes.append(f"'{name}' is constant ({spread.first:.6g}): there is nothing to learn about it.")
        for name, spread in zip(shell.inputs.names, self.inputs, strict=True):
            if spread.constant:
                notes.append(f"the input '{name}' is constant ({spread.first:.6g}): its effect cannot be learned.")
        return notes


@dataclass
class Spread:
    """The first of many values, and the smallest and the largest."""

    first: float = np.nan
    low: float = np.inf
    high: float = -np.inf

    def add(self, values: FloatArray) -> None:
        """Take more values."""
        if values.size:
            self.first = float(values[0]) if np.isnan(self.first) else self.first
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    @property
    def constant(self) -> bool:
        """Whether all values are the same."""
        return self.low == self.high


def _inputs(
    names: tuple[str, ...], parts: Sequence[Assembled], hold: Sequence[Intersample], units: Mapping[str, str]
) -> Inputs:
    if not names:
        return Inputs.none()
    sampled = SampledInputs(
        names=names,
        row_size=np.array([part.clock.size for part in parts], dtype=np.int64),
        time=np.concatenate([part.clock for part in parts]),
        values=np.concatenate([part.inputs for part in parts]),
        intersample=tuple(hold),
    )
    return Inputs(names=names, sampled=sampled, units={name: units.get(name, "") for name in names})


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
