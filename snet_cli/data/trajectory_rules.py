"""What makes trajectories sensible: the rules that hold on reading, on writing and for `info --check`.

Each rule is a generator of problems over plain `Trajectories`; names and shapes come first, because the others index
by them. A problem is one sentence (what, where, what was expected) and a hint (what to do next).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.signals import INTERSAMPLE, FourierInputs, SampledInputs
from snet_cli.data.trajectories import Trajectories
from snet_cli.errors import DataError

ID_BYTES = 64
"""Bytes of a trajectory's id in a file."""

RESERVED_INPUTS = ("time", "row_size")
"""An input of this name would be `u_time` or `u_row_size`, which mean something else."""

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class Problem(NamedTuple):
    """What is wrong and where, and what to do about it."""

    message: str
    hint: str


def find_problems(data: Trajectories, allow_missing_channels: bool = False) -> Iterator[Problem]:
    """Everything that is wrong with the trajectories, worst first; values are looked at only if the shapes fit.

    Parameters
    ----------
    data : Trajectories
    allow_missing_channels : bool
        Whether an output may lack all values, as in forecasts that diverged.
    """
    fatal = False
    for problem in (*_name_problems(data), *_shape_problems(data)):
        fatal = True
        yield problem
    if fatal:
        return
    yield from _time_problems("time", data.ids, data.row_size, data.time)
    yield from _value_problems(data)
    if data.inputs.sampled is not None:
        yield from _sampled_problems(data.ids, data.inputs.sampled)
    if data.inputs.fourier is not None:
        yield from _fourier_problems(data.ids, data.inputs.fourier)
    if not allow_missing_channels:
        yield from _missing_problems(data)


def require_sense(data: Trajectories, label: str, allow_missing_channels: bool = False) -> None:
    """Raise the first problem as an error of the file `label`.

    Raises
    ------
    DataError
    """
    for problem in find_problems(data, allow_missing_channels):
        raise DataError(f"{label}: {problem.message}", problem.hint)


def require_fit_samples(data: Trajectories, label: str = "the data") -> None:
    """What training needs beyond a sensible file: outputs, two samples in each trajectory, inputs all along them.

    Raises
    ------
    DataError
        Naming the trajectory or channel.
    """
    if not data.output_names or data.time.size == 0:
        raise DataError(
            f"{label}: holds no measured outputs, so there is nothing to fit.", "Such a file is for snet evaluate."
        )
    short = np.flatnonzero(data.row_size < 2)
    if short.size:
        more = f" (and {short.size - 1} more)" if short.size > 1 else ""
        count = int(data.row_size[short[0]])
        raise DataError(
            f"{label}: trajectory '{data.ids[short[0]]}'{more} has {count} sample{'' if count == 1 else 's'}, "
            "expected at least two.",
            "Leave it out, or join it to the recording it was cut from.",
        )
    for problem in _missing_problems(data):
        raise DataError(f"{label}: {problem.message}", problem.hint)
    for message in input_gaps(data):
        raise DataError(f"{label}: {message}", "Cut the outputs there, or record the inputs longer.")


def input_gaps(data: Trajectories) -> list[str]:
    """One sentence if sampled inputs do not span the samples of a trajectory (they are not extrapolated)."""
    sampled = data.inputs.sampled
    if sampled is None or not np.all(sampled.row_size):
        return []
    slack = 0.01 * data.sampling_interval()
    begin, end = data.inputs.sampled_start(), data.inputs.sampled_end()
    for b in np.flatnonzero((data.row_size > 0) & ((begin > data.start + slack) | (end < data.end - slack))):
        return [
            f"the inputs of trajectory '{data.ids[b]}' span {begin[b]:g} to {end[b]:g} {data.time_unit}, but its "
            f"samples {data.start[b]:g} to {data.end[b]:g}."
        ]
    return []


def notes_on(data: Trajectories) -> list[str]:
    """What is allowed but worth knowing: constant channels, inputs that end early."""
    notes = []
    for channel, name in enumerate(data.output_names):
        values = data.outputs[:, channel]
        known = values[~np.isnan(values)]
        if known.size > 1 and known.min() == known.max():
            notes.append(f"output '{name}' is constant ({known[0]:g}).")
    sampled = data.inputs.sampled
    for channel, name in enumerate(sampled.names if sampled is not None else ()):
        assert sampled is not None
        values = sampled.values[:, channel]
        if values.size > 1 and values.min() == values.max():
            notes.append(f"input '{name}' is constant ({values[0]:g}).")
    return notes + input_gaps(data)


def bad_name(name: object) -> str | None:
    """Why a channel cannot have this name; None if it can."""
    if not isinstance(name, str) or not name:
        return "is empty or no text"
    if "/" in name or any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
        return "holds '/' or a control character"
    return None


def bad_text(text: object) -> str | None:
    """Why an attribute cannot hold this text; None if it can."""
    if not isinstance(text, str):
        return "is no text"
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        return "holds a NUL or a character that UTF-8 has not"
    return None


def _name_problems(data: Trajectories) -> Iterator[Problem]:
    sampled, fourier = data.inputs.sampled, data.inputs.fourier
    groups: list[tuple[str, Sequence[object]]] = [
        ("output", data.output_names),
        ("state", data.state_names),
        ("input", data.inputs.names),
        ("constant", tuple(data.parameters)),
    ]
    for kind, names in groups:
        for name in names:
            if reason := bad_name(name):
                yield Problem(f"the {kind} name {name!r} {reason}.", "Rename it.")
        yield from _repeated(f"{kind} names", names)
    if not data.ids:
        yield Problem("holds no trajectory at all.", "A file needs at least one.")
    for text in data.ids:
        if not text or any(unicodedata.category(c) in ("Cc", "Cs") for c in text) or len(text.encode()) > ID_BYTES:
            yield Problem(f"the trajectory id {text!r} is empty, too long or not printable.", "Use 1 to 64 bytes.")
            break
    yield from _repeated("trajectory ids", data.ids)
    given = (*(sampled.names if sampled else ()), *(fourier.names if fourier else ()))
    if sorted(given) != sorted(data.inputs.names):
        yield Problem(
            f"the inputs are named {list(data.inputs.names)}, but their signals {list(given)}.", "Name each once."
        )
    for name in data.inputs.names:
        if name in RESERVED_INPUTS:
            yield Problem(f"an input cannot be named '{name}': u_{name} has a meaning of its own.", "Rename it.")
    for kind, text in (("title", data.title), ("history", data.history)):
        if reason := bad_text(text):
            yield Problem(f"the {kind} {reason}.", "Write plain text.")
    for name in (*data.units, *data.inputs.units, *data.units.values(), *data.inputs.units.values(), data.time_unit):
        if not isinstance(name, str) or any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
            yield Problem(f"the unit {name!r} is no printable text.", "Write it as a short text such as 'm/s'.")
            return


def _repeated(what: str, names: Sequence[object]) -> Iterator[Problem]:
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        yield Problem(f"the {what} hold '{twice}' twice.", "Give each its own name.")


def _shape_problems(data: Trajectories) -> Iterator[Problem]:
    count, rows = len(data.ids), data.time.size
    sampled, fourier = data.inputs.sampled, data.inputs.fourier
    expected: list[tuple[str, Any, tuple[int, ...]]] = [
        ("row_size", data.row_size, (count,)),
        ("time", data.time, (rows,)),
        ("outputs", data.outputs, (rows, len(data.output_names))),
        ("truth (xtrue)", data.truth, (rows, len(data.state_names))),
        ("x0", data.x0, (count, len(data.state_names))),
        ("split", data.split, (count,)),
        ("init_window", data.init_window, (count,)),
        *((f"param_{name}", values, (count,)) for name, values in data.parameters.items()),
    ]
    if sampled is not None:
        expected += [
            ("u_row_size", sampled.row_size, (count,)),
            ("u_time", sampled.time, (sampled.time.size,)),
            ("sampled inputs", sampled.values, (sampled.time.size, len(sampled.names))),
        ]
    if fourier is not None:
        inputs, harmonics = len(fourier.names), np.shape(fourier.omega)[-1] if np.ndim(fourier.omega) else 0
        expected.append(("uf mean", fourier.mean, (count, inputs)))
        for name in ("omega", "cos", "sin"):
            expected.append((f"uf {name}", getattr(fourier, name), (count, inputs, harmonics)))
    for name, values, shape in expected:
        if values is not None and np.shape(values) != shape:
            yield Problem(f"{name} has shape {np.shape(values)}, expected {shape}.", "Give one entry for each.")
            return
    yield from _row_problems("row_size", data.row_size, "time", rows)
    if sampled is not None:
        yield from _row_problems("u_row_size", sampled.row_size, "u_time", sampled.time.size)


def size_problems(row_size: IntArray, rows: int, input_rows: IntArray | None, input_times: int) -> Iterator[Problem]:
    """Row sizes that do not add up to the samples, or to the input samples, of a whole file."""
    yield from _row_problems("row_size", row_size, "time", rows)
    if input_rows is not None:
        yield from _row_problems("u_row_size", input_rows, "u_time", input_times)


def _row_problems(name: str, row_size: IntArray, of: str, rows: int) -> Iterator[Problem]:
    negative = np.flatnonzero(row_size < 0)
    if negative.size:
        yield Problem(
            f"{name} is {row_size[negative[0]]} at entry {negative[0]}, expected 0 or more.", "Count samples."
        )
    elif (total := sum(row_size.tolist())) != rows:  # Python's integers, because 64 bits could wrap around
        yield Problem(f"{name} adds up to {total} samples, but '{of}' has {rows}.", "They must agree.")


def _time_problems(name: str, ids: Sequence[str], row_size: IntArray, time: FloatArray) -> Iterator[Problem]:
    owner = np.repeat(np.arange(len(ids)), row_size)
    first = np.cumsum(row_size) - row_size

    def place(row: int) -> tuple[str, int]:
        return f"'{name}' of trajectory '{ids[owner[row]]}'", row - int(first[owner[row]]) + 1

    bad = np.flatnonzero(~np.isfinite(time))
    if bad.size:
        where, sample = place(int(bad[0]))
        yield Problem(f"{where} is {time[bad[0]]} at sample {sample}, expected a finite time.", "Drop the sample.")
        return
    step = np.diff(time)
    bad = np.flatnonzero((step <= 0) & (np.diff(owner) == 0)) + 1
    if bad.size == 0:
        return
    where, sample = place(int(bad[0]))
    value = time[bad[0]]
    if step[bad[0] - 1] == 0:
        message = f"{where} holds {value:g} twice, at samples {sample - 1} and {sample}."
        yield Problem(message, "Keep one of the two; times must increase strictly.")
    else:
        message = f"{where} falls from {time[bad[0] - 1]:g} to {value:g} at sample {sample}."
        yield Problem(message, "Sort the samples; times must increase strictly.")


def _value_problems(data: Trajectories) -> Iterator[Problem]:
    rows = data.trajectory_of_row()
    everyone = np.arange(len(data))
    for channel, name in enumerate(data.output_names):
        yield from _infinite(f"y_{name}", data.outputs[:, channel], rows, data.ids)
    for channel, name in enumerate(data.state_names):
        if data.truth is not None:
            yield from _infinite(f"xtrue_{name}", data.truth[:, channel], rows, data.ids)
        if data.x0 is not None:
            yield from _infinite(f"x0_{name}", data.x0[:, channel], everyone, data.ids)
    for name, values in data.parameters.items():
        yield from _not_finite(f"param_{name}", values, everyone, data.ids)
    for name, level in data.noise_std.items():
        if not (np.isfinite(level) and level >= 0):
            yield Problem(f"snet_noise_std of '{name}' is {level}, expected 0 or more.", "Leave it out if unknown.")
    if data.split is not None:
        for b in np.flatnonzero((data.split < 0) | (data.split > 2))[:1]:
            message = f"split of trajectory '{data.ids[b]}' is {data.split[b]}, expected 0, 1 or 2."
            yield Problem(message, "0 is train, 1 valid, 2 test.")
    if data.init_window is not None:
        for b in np.flatnonzero(data.init_window < 0)[:1]:
            message = f"init_window of trajectory '{data.ids[b]}' is {data.init_window[b]}, expected 0 or more."
            yield Problem(message, "It counts samples.")


def _sampled_problems(ids: Sequence[str], sampled: SampledInputs) -> Iterator[Problem]:
    for b in np.flatnonzero(sampled.row_size == 0)[:1]:
        yield Problem(f"trajectory '{ids[b]}' has no input samples.", "Every trajectory needs inputs, or none.")
        return
    yield from _time_problems("u_time", ids, sampled.row_size, sampled.time)
    owner = np.repeat(np.arange(len(ids)), sampled.row_size)
    for channel, name in enumerate(sampled.names):
        yield from _not_finite(f"u_{name}", sampled.values[:, channel], owner, ids)
    if len(sampled.intersample) != len(sampled.names):
        yield Problem("not every sampled input says how it is held.", "One of zoh, linear, cubic for each.")
    for name, hold in zip(sampled.names, sampled.intersample, strict=False):
        if hold not in INTERSAMPLE:
            message = f"snet_intersample of 'u_{name}' is {hold!r}, expected one of {', '.join(INTERSAMPLE)}."
            yield Problem(message, "Write how the input continues between its samples.")


def _fourier_problems(ids: Sequence[str], fourier: FourierInputs) -> Iterator[Problem]:
    everyone = np.arange(len(ids))
    for channel, name in enumerate(fourier.names):
        yield from _not_finite(f"uf_{name}_mean", fourier.mean[:, channel], everyone, ids)
        for part in ("omega", "cos", "sin"):
            values = getattr(fourier, part)[:, channel]
            values = np.where(np.isfinite(values).all(axis=-1), 0.0, np.nan)
            yield from _not_finite(f"uf_{name}_{part}", values, everyone, ids)


def _missing_problems(data: Trajectories) -> Iterator[Problem]:
    if data.time.size == 0:
        return
    for channel, name in enumerate(data.output_names):
        if np.isnan(data.outputs[:, channel]).all():
            yield missing_channel(name)


def missing_channel(name: str) -> Problem:
    """The problem of an output without any value."""
    return Problem(
        f"output '{name}' has no value at all (every entry of 'y_{name}' is missing).",
        "Leave the channel out when you import, or check the column it came from.",
    )


def _infinite(name: str, values: FloatArray, owner: IntArray, ids: Sequence[str]) -> Iterator[Problem]:
    for row in np.flatnonzero(np.isinf(values))[:1]:
        message = f"'{name}' of trajectory '{ids[owner[row]]}' is {values[row]}, expected a finite value."
        yield Problem(message, "Write NaN where nothing is known.")


def _not_finite(name: str, values: FloatArray, owner: IntArray, ids: Sequence[str]) -> Iterator[Problem]:
    for row in np.flatnonzero(~np.isfinite(values))[:1]:
        message = f"'{name}' of trajectory '{ids[owner[row]]}' is {values[row]}, expected a finite value."
        yield Problem(message, "Inputs and constants have no missing values: fill the gap, or cut the recording there.")
