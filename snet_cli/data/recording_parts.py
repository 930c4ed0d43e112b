"""A recording that is larger than the memory, assembled part by part into what `recording.assemble_one` makes of it.

Its rows have to be in order of time; all else is the same to the last bit, errors and repairs included. Outputs need
nothing but their own row. Inputs are filled from their neighbours in time: a part ends before the first row whose
filling a later row may decide, and what earlier rows decide goes along as a few rows of context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.recording import (
    Assembled,
    Recording,
    Repairs,
    input_clock,
    known_inputs,
    require_finite_times,
    require_finite_values,
    require_inputs,
    require_samples,
    require_single_times,
)
from snet_cli.data.signals import Intersample
from snet_cli.errors import DataError

FloatArray = NDArray[np.float64]


def in_time_order(parts: Iterable[Recording]) -> bool:
    """Whether the rows are in order of time; if so, everything that `assemble_one` refuses is refused here.

    Parameters
    ----------
    parts : iterable of Recording
        Consecutive rows; each part but the first begins with the last row of the one before.

    Raises
    ------
    DataError
        The one of `assemble_one`, or that of a time that is not finite.
    """
    found: list[DataError | None] = [None] * len(_CHECKS)
    ordered, measured, known, first = True, 0, np.zeros(0, bool), None
    for part in parts:
        again = 0 if first is None else 1
        first = first or part
        for rank, check in enumerate(_CHECKS):
            try:
                check(part)
            except DataError as error:
                found[rank] = found[rank] or error
        ordered = ordered and not bool((np.diff(part.time) < 0).any())
        measured += int(np.isfinite(part.outputs[again:]).any(axis=1).sum())
        known = known_inputs(part) if known.size == 0 else known | known_inputs(part)
    assert first is not None
    if found[0] is not None:
        raise found[0]
    if not ordered:
        return False
    for problem in found:
        if problem is not None:
            raise problem
    require_samples(first, measured)
    require_inputs(first, known)
    return True


def _single(part: Recording) -> None:
    require_single_times(part, np.arange(part.time.size))


def _finite_outputs(part: Recording) -> None:
    require_finite_values(replace(part, input_names=(), inputs=part.inputs[:, :0]))


_CHECKS: tuple[Callable[[Recording], None], ...] = (
    require_finite_times,
    _single,
    _finite_outputs,
    require_finite_values,
)
"""What `recording.time_order` checks, in its order."""


def assembled_parts(
    parts: Iterable[tuple[Recording, bool]], hold: Sequence[Intersample], repairs: Repairs
) -> Iterator[Assembled]:
    """What the trajectory of a recording has of each part of its rows.

    Parameters
    ----------
    parts : iterable of (Recording, bool)
        Consecutive rows that passed `in_time_order`; true with the last ones.
    """
    clock = _InputParts(hold)
    for part, last in parts:
        measured = np.isfinite(part.outputs).any(axis=1)
        repairs.unmeasured += int(np.sum(~measured))
        time, inputs = np.zeros(0), np.zeros((0, len(hold)))
        if hold:
            time, inputs = clock.add(part.time, part.inputs, last)
        yield Assembled(part.time[measured], part.outputs[measured], time, inputs)
    repairs.cells += clock.repaired
    repairs.recordings += clock.repaired > 0


class _InputParts:
    """`input_clock` of rows that come in parts.

    Kept between two parts are the rows that still wait, behind `context` rows that were given out or that hold what
    decides the ones that wait: a zoh input its value at the last row given out, any other its last known value.
    """

    def __init__(self, hold: Sequence[Intersample]) -> None:
        self.waits = np.array([kind != "zoh" for kind in hold], bool)
        self.hold = hold
        self.time = np.zeros(0)
        self.values = np.zeros((0, len(hold)))
        self.context = 0
        self.repaired = 0

    def add(self, time: FloatArray, values: FloatArray, last: bool) -> tuple[FloatArray, FloatArray]:
        """The rows of the clock that are decided now, and their values."""
        self.time, self.values = np.concatenate([self.time, time]), np.concatenate([self.values, values])
        end = len(self.time) if last else self._decided()
        if end <= self.context:
            return np.zeros(0), self.values[:0]
        keep, filled, missing = input_clock(self.time, self.values, self.hold)
        rows = np.flatnonzero(keep)
        own = (rows >= self.context) & (rows < end)
        out = self.time[rows[own]], filled[own]
        self.repaired += int(missing[own].sum()) - (int(missing[-1].sum()) if last else 0)
        if not last:
            self._carry(end, filled[own][-1] if own.any() else None)
        return out

    def _decided(self) -> int:
        """Rows before this one are decided; the very last row of a recording is kept even if it holds nothing."""
        known = ~np.isnan(self.values)
        if not known.any(axis=0).all():
            return 0
        latest = len(known) - 1 - np.argmax(known[::-1], axis=0)
        return int(np.where(self.waits, latest, len(known) - 1).min())

    def _carry(self, end: int, given: FloatArray | None) -> None:
        """Keep the rows from `end` on, and before them what decides them."""
        if given is None:  # rows without any input, which leave the clock: what decided them still decides
            self.time = np.concatenate([self.time[: self.context], self.time[end:]])
            self.values = np.concatenate([self.values[: self.context], self.values[end:]])
            return
        known = ~np.isnan(self.values[:end])
        context = np.full((end, len(self.hold)), np.nan)
        for channel in np.flatnonzero(self.waits & known.any(axis=0)):
            row = end - 1 - int(np.argmax(known[::-1, channel]))
            context[row, channel] = self.values[row, channel]
        context[end - 1, ~self.waits] = given[~self.waits]
        kept = ~np.isnan(context).all(axis=1)
        self.context = int(kept.sum())
        self.time = np.concatenate([self.time[:end][kept], self.time[end:]])
        self.values = np.concatenate([context[kept], self.values[end:]])
