"""A recording as it was read, and what makes trajectories of recordings.

Readers (CSV, NPZ, MAT) only find columns. Everything that a table means is decided here, once for all formats:
rows are sorted by time, a time that occurs twice is an error, inputs get a clock of their own without holes, and
rows that hold no output leave the outputs' clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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


@dataclass
class InputRepairs:
    """How often missing inputs were filled, so that the user hears it once and not once per recording."""

    cells: int = 0
    recordings: int = 0


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
    notes: list[str] = []
    repairs = InputRepairs()
    unsorted = unmeasured = 0
    samples, clocks = [], []
    for recording in recordings:
        order = time_order(recording)
        unsorted += not np.array_equal(order, np.arange(order.size))
        time, outputs = recording.time[order], recording.outputs[order]
        measured = np.isfinite(outputs).any(axis=1)
        unmeasured += int(np.sum(~measured))
        _check_length(recording, int(measured.sum()))
        samples.append((time[measured], outputs[measured]))
        if recording.input_names:
            clocks.append(input_clock(recording, time, recording.inputs[order], hold, repairs))
    if unsorted:
        notes.append(f"sorted the rows of {_counted(unsorted, 'recording')} by time.")
    if unmeasured:
        notes.append(f"{_counted(unmeasured, 'row')} without any state value: their inputs are kept, not their times.")
    if repairs.cells:
        notes.append(
            f"filled {_counted(repairs.cells, 'missing input value')} in {_counted(repairs.recordings, 'recording')}: "
            "zoh inputs keep the value before, linear and cubic ones are interpolated, the ends are held."
        )
    first = recordings[0]
    trajectories = Trajectories(
        ids=tuple(ids),
        row_size=np.array([time.size for time, _ in samples], dtype=np.int64),
        time=np.concatenate([time for time, _ in samples]),
        outputs=np.concatenate([outputs for _, outputs in samples]),
        output_names=first.output_names,
        inputs=_inputs(first.input_names, clocks, hold, units),
        units={name: units.get(name, "") for name in (*first.output_names, *first.input_names)},
    )
    return trajectories, notes + check_channels(trajectories)


def time_order(recording: Recording) -> IntArray:
    """Row order by time; an error for a time that is not finite or stands twice."""
    time = recording.time
    bad = np.flatnonzero(~np.isfinite(time))
    if bad.size:
        what = "is missing" if np.isnan(time[bad[0]]) else "is infinite"
        raise DataError(
            f"{recording.place(bad[0])}: the time in '{recording.time_name}' {what}, expected a finite number.",
            "Remove the row or give it its time.",
        )
    order = np.argsort(time, kind="stable")
    again = np.flatnonzero(time[order][1:] == time[order][:-1])
    if again.size:
        earlier, later = order[again[0]], order[again[0] + 1]
        raise DataError(
            f"{recording.place(later)}: the time {time[later]:.15g} stands there a second time "
            f"(first in {recording.row_word} {int(recording.rows[earlier])}).",
            "Remove one of the rows; if they belong to different recordings, separate them with --by COLUMN.",
        )
    for names, values in ((recording.output_names, recording.outputs), (recording.input_names, recording.inputs)):
        infinite = np.argwhere(np.isinf(values))
        if infinite.size:
            row, channel = infinite[0]
            raise DataError(
                f"{recording.place(row)}: '{names[channel]}' is infinite, expected a finite number.",
                "Leave the cell empty if the value was not measured.",
            )
    return order


def input_clock(
    recording: Recording, time: FloatArray, values: FloatArray, hold: Sequence[Intersample], repairs: InputRepairs
) -> tuple[FloatArray, FloatArray]:
    """Clock (k,) and values (k, m) of the inputs without holes.

    All inputs of a trajectory share one clock. A row in which every input is missing leaves it, except the first and
    the last, for the inputs have to cover all samples. Where some are missing, each is filled by its own hold: zoh
    keeps the value before, linear and cubic inputs are interpolated linearly; the ends are held.
    An input table one row shorter than the states is the case of a last row that is missing.
    """
    missing = np.isnan(values)
    for channel, name in enumerate(recording.input_names):
        if missing[:, channel].all():
            raise DataError(
                f"{recording.source}: the input '{name}' of recording '{recording.id}' holds no value at all.",
                "An input has to be known; leave it out of --inputs, or leave the recording out.",
            )
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
    # the hold after the last row is the documented rule for tables one row shorter: no repair to speak of
    repaired = int(missing[:-1].sum())
    repairs.cells += repaired
    repairs.recordings += repaired > 0
    return time, values


def check_channels(trajectories: Trajectories) -> list[str]:
    """Notes on channels that are constant or missing in places.

    Raises
    ------
    DataError
        If a state has no value in any trajectory.
    """
    notes = []
    owner = trajectories.trajectory_of_row()
    for channel, name in enumerate(trajectories.output_names):
        values = trajectories.outputs[:, channel]
        measured = np.isfinite(values)
        if not measured.any():
            raise DataError(
                f"the state '{name}' holds no value at all.",
                "Check the column; leave it out of --states if it was not measured.",
            )
        absent = np.flatnonzero(np.bincount(owner[measured], minlength=len(trajectories)) == 0)
        if absent.size:
            notes.append(f"'{name}' was not measured in {listing(trajectories.ids[i] for i in absent)}.")
        if values[measured].min() == values[measured].max():
            notes.append(f"'{name}' is constant ({values[measured][0]:.6g}): there is nothing to learn about it.")
    if trajectories.inputs.sampled is not None:
        for name, values in zip(trajectories.inputs.sampled.names, trajectories.inputs.sampled.values.T, strict=True):
            if values.min() == values.max():
                notes.append(f"the input '{name}' is constant ({values[0]:.6g}): its effect cannot be learned.")
    return notes


def _check_length(recording: Recording, measured: int) -> None:
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


def _inputs(
    names: tuple[str, ...],
    clocks: Sequence[tuple[FloatArray, FloatArray]],
    hold: Sequence[Intersample],
    units: Mapping[str, str],
) -> Inputs:
    if not names:
        return Inputs.none()
    sampled = SampledInputs(
        names=names,
        row_size=np.array([time.size for time, _ in clocks], dtype=np.int64),
        time=np.concatenate([time for time, _ in clocks]),
        values=np.concatenate([values for _, values in clocks]),
        intersample=tuple(hold),
    )
    return Inputs(names=names, sampled=sampled, units={name: units.get(name, "") for name in names})


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
