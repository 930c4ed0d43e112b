"""Numbers that do not fit into the memory, in temporary files without a name.

Rows are kept as they came, to be read as rows; columns so that each can be read alone. The files vanish with the
process, whatever ends it.
"""

from __future__ import annotations

import io
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.outputs import no_scratch

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

Reader = Callable[[int, int], FloatArray]
"""Gives the entries ``begin:end`` of a column."""

Require = Callable[[str, float], None]
"""Refuses work (its name, and the bytes that it takes) for which there is no memory."""

NUMBER = 8
"""Bytes of a float64."""

AT_ONCE = 1 << 30
"""Bytes that the system is asked for at a time; none gives more than 2 GB."""

DIGIT = 16
"""Bits by which a median is searched at a time."""


class _File:
    """A temporary file of float64, closed when nobody has it any more."""

    def __init__(self) -> None:
        try:
            with tempfile.TemporaryFile(buffering=0) as file:
                descriptor = os.dup(file.fileno())
        except OSError as problem:
            raise no_scratch(problem) from None
        weakref.finalize(self, os.close, descriptor)
        self._file = io.FileIO(descriptor, "r+", closefd=False)

    def read(self, first: int, count: int) -> FloatArray:
        """Numbers from the `first` on."""
        values = np.empty(count)
        view = memoryview(values.data).cast("B")
        self._file.seek(first * NUMBER)
        while view:
            done = self._file.readinto(view[:AT_ONCE])
            if not done:
                raise EOFError("a temporary file is shorter than what was written to it")
            view = view[done:]
        return values

    def write(self, first: int, values: FloatArray) -> None:
        """Put numbers there."""
        view = memoryview(np.ascontiguousarray(values, np.float64).reshape(-1).data).cast("B")
        try:
            self._file.seek(first * NUMBER)
            while view:
                view = view[self._file.write(view[:AT_ONCE]) :]
        except OSError as problem:
            raise no_scratch(problem) from None

    def truncate(self, count: int) -> None:
        """Give the room of all further numbers back."""
        self._file.truncate(count * NUMBER)


class ScratchRows:
    """A table on the disk that grows by rows and is read by rows."""

    def __init__(self, width: int) -> None:
        self.width, self._count, self._file = width, 0, _File()

    def __len__(self) -> int:
        return self._count

    def append(self, rows: FloatArray) -> None:
        """Add rows (k, width)."""
        self.put(self._count, rows)

    def put(self, begin: int, rows: FloatArray) -> None:
        """Write rows (k, width) from row `begin` on."""
        self._file.write(begin * self.width, rows)
        self._count = max(self._count, begin + len(rows))

    def between(self, begin: int, end: int) -> FloatArray:
        """Rows ``begin:end``."""
        return self._file.read(begin * self.width, (end - begin) * self.width).reshape(-1, self.width)

    def truncate(self, count: int) -> None:
        """Forget all rows behind the first `count`."""
        self._file.truncate(count * self.width)
        self._count = count


class ScratchColumns:
    """A table on the disk that grows by blocks of rows and is read by columns: each block lies column by column."""

    def __init__(self, width: int) -> None:
        self.width, self._file = width, _File()
        self._ends = [0]

    def __len__(self) -> int:
        return self._ends[-1]

    def append(self, rows: FloatArray) -> None:
        """Add rows (k, width)."""
        if len(rows):
            self._file.write(len(self) * self.width, rows.T)
            self._ends.append(len(self) + len(rows))

    def column(self, number: int) -> Reader:
        """What reads one column."""

        def between(begin: int, end: int) -> FloatArray:
            first = int(np.searchsorted(self._ends, begin, side="right")) - 1
            parts = []
            while begin < end:
                low, high = self._ends[first : first + 2]
                stop = min(end, high)
                at = low * self.width + number * (high - low) + begin - low
                parts.append(self._file.read(at, stop - begin))
                begin, first = stop, first + 1
            return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0), *parts])

        return between


def gathered(source: Reader, first: IntArray, stop: IntArray) -> Reader:
    """What reads the ranges ``first[w]:stop[w]`` of a column as if they lay one after the other; `first` ascends."""
    ends = np.cumsum(stop - first)

    def between(begin: int, end: int) -> FloatArray:
        if begin >= end:
            return np.zeros(0)
        low = int(np.searchsorted(ends, begin, side="right"))
        high = int(np.searchsorted(ends, end, side="left")) + 1
        at, to = first[low:high].copy(), stop[low:high].copy()
        at[0] = to[0] - (ends[low] - begin)
        to[-1] -= ends[high - 1] - end
        base, span = int(at.min()), int(to.max() - at.min())  # ranges that overlap: one may begin before a cut first
        if span <= 4 * (end - begin):
            values = source(base, base + span)
            size = to - at
            within = np.arange(end - begin) - np.repeat(np.cumsum(size) - size, size)
            return values[np.repeat(at - base, size) + within]
        return np.concatenate([source(int(a), int(b)) for a, b in zip(at, to, strict=True)])

    return between


def median(parts: Callable[[], Iterable[FloatArray]]) -> float:
    """The median of positive numbers that come in parts, as often as they are asked for; 0 where there is none.

    As `numpy.median`, to the last bit: positive floats are ordered as their bits are, so that the number in the middle
    is found from its leading bits on, `DIGIT` at a time.
    """
    count, low, high = 0, np.inf, 0.0
    for part in parts():
        count += part.size
        low, high = min(low, float(part.min(initial=np.inf))), max(high, float(part.max(initial=0.0)))
    if count == 0:
        return 0.0
    if low == high:
        return low
    wanted = (count - 1) // 2
    ends_of_range = np.array([low, high]).view(np.uint64)
    differ = int(ends_of_range[0] ^ ends_of_range[1]).bit_length()  # bits before these are those of all numbers
    shift = (differ - 1) // DIGIT * DIGIT
    known, below = int(ends_of_range[0]) >> (shift + DIGIT), 0  # leading bits, and how many numbers are smaller
    while True:
        counts = np.zeros(1 << DIGIT, np.int64)
        for part in parts():
            bits = part.view(np.uint64) >> np.uint64(shift)
            own = bits[(bits >> np.uint64(DIGIT)) == np.uint64(known)] & np.uint64((1 << DIGIT) - 1)
            counts += np.bincount(own.astype(np.int64), minlength=1 << DIGIT)
        ends = below + np.cumsum(counts)
        digit = int(np.searchsorted(ends, wanted, side="right"))
        below = int(ends[digit] - counts[digit])
        known = known << DIGIT | digit
        if shift == 0:
            break
        shift -= DIGIT
    lower = float(np.array([known], np.uint64).view(np.float64)[0])
    if count % 2 or below + counts[digit] > wanted + 1:
        return lower
    upper = min(float(part[part > lower].min(initial=np.inf)) for part in parts())
    return float(np.mean([lower, upper]))
