"""A trajectory file that is larger than the memory: its trajectories are read a range at a time.

The file stays open under a read-only handle that the guard let pass (`content.open_in_place`). A range of trajectories
is a range of every dimension: of `traj`, and of `obs` and `uobs` by the cumulated row sizes, which are all that is kept
of the whole. Every range obeys the rules of `trajectory_rules` by itself; what only the whole can tell (sizes that add
up, ids that repeat, a channel without any value) is checked apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.content import Content, open_in_place
from snet_cli.data.merging import merge
from snet_cli.data.scratch import median
from snet_cli.data.shares import shares
from snet_cli.data.storage import MAX_BYTES, display
from snet_cli.data.trajectories import Trajectories, ragged_offsets
from snet_cli.data.trajectory_file import assemble, unread_notes
from snet_cli.data.trajectory_layout import FORMAT, layout_problems, require_format
from snet_cli.data.trajectory_rules import require_sense, size_problems
from snet_cli.errors import DataError

IntArray = NDArray[np.int64]

SLICE_SAMPLES = 100_000
"""Samples that are read at a time: some tens of megabytes with everything that is computed from them."""

BLOCK = 1 << 22
"""Bytes that are hashed at a time."""


class TrajectorySlices:
    """Trajectories of a file, or a choice of them, of which only row sizes are in memory.

    Parameters
    ----------
    content : Content
        Of the open file.
    label : str
        Its name, for messages.
    sha256 : str
    kept : ndarray of bool, shape (B,), optional
        The trajectories that count; all unless given.

    Attributes
    ----------
    row_size : ndarray, shape (kept,)
        Samples of each trajectory that counts.
    split : ndarray of int, shape (B,), or None
        Of all trajectories of the file.
    shell : Trajectories
        None of the trajectories, but everything else: names, units, the system, provenance.
    """

    def __init__(self, content: Content, label: str, sha256: str, kept: NDArray[np.bool_] | None = None) -> None:
        self.content, self.label, self.sha256 = content, label, sha256
        arrays = content.arrays
        self._rows = arrays["row_size"].read().astype(np.int64)
        self._input_rows = arrays["u_row_size"].read().astype(np.int64) if "u_row_size" in arrays else None
        for problem in size_problems(self._rows, arrays["time"].shape[0], self._input_rows, self._input_times()):
            raise DataError(f"{label}: {problem.message}", problem.hint)
        self._offsets = ragged_offsets(self._rows)
        self._input_offsets = None if self._input_rows is None else ragged_offsets(self._input_rows)
        self.split = arrays["split"].read().astype(np.int64) if "split" in arrays else None
        self.kept = np.ones(self._rows.size, bool) if kept is None else kept
        self.row_size = self._rows[self.kept]
        self.shell = assemble(content, label, self._ranges(0, 0))

    def _input_times(self) -> int:
        return self.content.arrays["u_time"].shape[0] if "u_time" in self.content.arrays else 0

    def __len__(self) -> int:
        return int(self.row_size.size)

    def where(self, kept: NDArray[np.bool_]) -> Self:
        """The same file with another choice of its trajectories (B,)."""
        return type(self)(self.content, self.label, self.sha256, kept)

    def _ranges(self, begin: int, end: int) -> dict[str, slice]:
        """The part of each dimension that trajectories `begin` to `end` of the file have."""
        ranges = {"traj": slice(begin, end), "obs": slice(int(self._offsets[begin]), int(self._offsets[end]))}
        if self._input_offsets is not None:
            ranges["uobs"] = slice(int(self._input_offsets[begin]), int(self._input_offsets[end]))
        return ranges

    def read(self, begin: int, end: int, *, truth: bool = False) -> Trajectories:
        """Trajectories `begin` to `end` of the file, those of them that count.

        Raises
        ------
        DataError
            If a value is damaged, or breaks a rule.
        """
        data = assemble(self.content, self.label, self._ranges(begin, end), truth=truth)
        require_sense(data, self.label, allow_missing_channels=True)
        kept = self.kept[begin:end]
        return data if kept.all() else data.select(np.flatnonzero(kept))

    def cuts(self, parts: int = 1, part: int = 0, samples: int | None = None) -> list[tuple[int, int]]:
        """Ranges of the file, in order, that one of several processes reads one after the other.

        Parameters
        ----------
        parts, part : int
            Number of processes, and which one: each has a contiguous range with its share of the samples.
        samples : int
            Most samples of a range, unless a single trajectory has more; `SLICE_SAMPLES` unless given.
        """
        samples = SLICE_SAMPLES if samples is None else samples
        numbers = np.flatnonzero(self.kept)
        own = shares(self.row_size, parts)[part]
        return self.between(int(numbers[own.start]), int(numbers[own.stop - 1]) + 1, samples)

    def count(self, begin: int, end: int) -> int:
        """How many trajectories of a range of the file count."""
        return int(self.kept[begin:end].sum())

    def between(self, begin: int, end: int, samples: int) -> list[tuple[int, int]]:
        """A range of the file cut into ranges of at most so many samples, without those where nothing counts."""
        found = []
        while begin < end:
            most = int(np.searchsorted(self._offsets, self._offsets[begin] + samples, side="right")) - 1
            stop = min(max(most, begin + 1), end)
            if self.kept[begin:stop].any():
                found.append((begin, stop))
            begin = stop
        return found

    def longest(self) -> tuple[int, int]:
        """Samples of the longest trajectory, and the most numbers that any has in samples and knots together."""
        of_samples = sum(name == "time" or name.startswith(("y_", "xtrue_")) for name in self.content.arrays)
        numbers = of_samples * self._rows
        if self._input_rows is not None:
            numbers = numbers + (1 + len(self.shell.inputs.names)) * self._input_rows
        return int(self._rows.max()), int(numbers.max())

    def whole(self) -> Trajectories:
        """All that count, in memory."""
        return joined([self.read(begin, end) for begin, end in self.cuts()])

    def first(self, count: int) -> Trajectories:
        """The first of those that count."""
        end = int(np.flatnonzero(self.kept)[min(count, len(self)) - 1]) + 1
        return self.read(0, end)

    def spans(self, cuts: list[tuple[int, int]]) -> NDArray[np.float64]:
        """Time from first to last sample of each trajectory that counts in these ranges; nothing else is read."""
        found = []
        for begin, end in cuts:
            rows = self._ranges(begin, end)["obs"]
            time = self.content.arrays["time"].between(rows.start, rows.stop)
            first = self._offsets[begin:end] - rows.start
            last = self._offsets[begin + 1 : end + 1] - rows.start - 1
            span = np.where(last > first, time[np.maximum(last, 0)] - time[np.minimum(first, time.size - 1)], 0.0)
            found.append(span[self.kept[begin:end]])
        return np.concatenate(found)

    def _times(self) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64]]]:
        """Times of the trajectories that count, a slice after the other, and the row sizes that go with them."""
        for begin, end in self.between(0, self.kept.size, SLICE_SAMPLES):
            rows = self._ranges(begin, end)["obs"]
            time = self.content.arrays["time"].between(rows.start, rows.stop).astype(np.float64, copy=False)
            kept = self.kept[begin:end]
            sizes = self._rows[begin:end]
            yield time[np.repeat(kept, sizes)], sizes[kept]

    def sampling_interval(self) -> float:
        """As `Trajectories.sampling_interval`."""

        def steps() -> Iterator[NDArray[np.float64]]:
            for time, sizes in self._times():
                first = np.cumsum(sizes)[:-1]
                yield np.delete(np.diff(time), np.unique(first[(first > 0) & (first < time.size)]) - 1)

        return median(steps)

    def latest(self) -> float:
        """The largest of all times, without its sign."""
        return max((float(np.abs(time).max(initial=0.0)) for time, _ in self._times()), default=0.0)

    def at(self, numbers: IntArray) -> Trajectories:
        """Single trajectories, by their numbers among those that count, joined into one piece of data."""
        places = np.flatnonzero(self.kept)[numbers]
        return joined([self.read(int(b), int(b) + 1) for b in places])


def joined(parts: list[Trajectories]) -> Trajectories:
    """Trajectories of one file, read apart, as one piece of data."""
    ids = [name for part in parts for name in part.ids]
    return parts[0] if len(parts) == 1 else merge(parts, [""] * len(parts), ids)[0]


@contextmanager
def open_slices(path: str | Path, *, max_bytes: int = MAX_BYTES) -> Iterator[TrajectorySlices]:
    """A trajectory file to be read in slices while the context is open.

    Raises
    ------
    DataError
        If the file is missing, damaged, hostile or foreign, or its sizes or ids are senseless.
    """
    label = display(path)
    with ExitStack() as stack:
        content = stack.enter_context(open_in_place(path, label, DataError, max_bytes))
        require_format(content, label, FORMAT, DataError)
        for problem in layout_problems(content):
            raise DataError(f"{label}: {problem.message}", problem.hint)
        _require_own_ids(content, label)
        yield TrajectorySlices(content, label, _digest(path, label))


def notes_on_file(slices: TrajectorySlices) -> list[str]:
    """What people should know of the file: arrays without checksums, unknown variables."""
    without_checksums, unknown = unread_notes(slices.content)
    return without_checksums + unknown


def _digest(path: str | Path, label: str) -> str:
    try:
        with open(path, "rb", buffering=0) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as problem:
        raise DataError(f"{label}: cannot be read: {problem.strerror}.", "Check the path.") from None


def _require_own_ids(content: Content, label: str) -> None:
    """No id stands twice: 8 bytes of each are compared, and those that agree looked at in full."""
    array = content.arrays["trajectory"]
    count, step = array.shape[0], 1 << 17
    if count == 0:
        raise DataError(f"{label}: holds no trajectory at all.", "A file needs at least one.")
    marks = np.concatenate([_marks(array.between(b, min(b + step, count))) for b in range(0, count, step)])
    order = np.argsort(marks, kind="stable")
    alike = np.flatnonzero(np.diff(marks[order]) == 0)
    for one, other in zip(order[alike], order[alike + 1], strict=True):
        first, second = (array.between(int(b), int(b) + 1)[0] for b in (one, other))
        if first == second:
            name = first.decode("utf-8", "replace")
            raise DataError(f"{label}: the trajectory ids hold '{name}' twice.", "Give each its own name.")


def _marks(ids: NDArray[np.bytes_]) -> NDArray[np.uint64]:
    """A number for each id, the same for the same: an FNV hash of its bytes, 8 at a time."""
    width = -(-ids.dtype.itemsize // 8) * 8
    words = ids.astype(f"S{width}").view(np.uint64).reshape(ids.size, width // 8)
    mark = np.full(ids.size, 0xCBF29CE484222325, np.uint64)
    for column in words.T:
        mark = (mark ^ column) * np.uint64(0x100000001B3)
        mark ^= mark >> np.uint64(32)
    return mark
