"""A trajectory file written a range of trajectories at a time, for outputs that are larger than the memory.

All arrays are made first, with their full lengths; then every slice adds its rows. Rows wait until they fill a chunk of
HDF5, so that each chunk is compressed and written once, and the bytes depend on the data and the cut into slices only.
Before anything is written its room on the disk is reserved: HDF5 ends in a segmentation fault on a full disk.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from snet_cli.data.content import (
    DIMENSION_ONLY,
    Array,
    Content,
    chunk_shape,
    is_long,
    write_attributes,
    write_content,
)
from snet_cli.data.outputs import reserve, write_in_place
from snet_cli.data.storage import display
from snet_cli.data.trajectories import Trajectories
from snet_cli.data.trajectory_file import content_of
from snet_cli.errors import DataError

LARGE = 50_000_000
"""Numbers of an output (samples times channels) from which on it is written in slices: a file of about 0.8 GB. Its size
decides, never the machine, so that the same command gives the same bytes everywhere."""

SLICE_NUMBERS = 1_500_000
"""Numbers of a slice."""

MARGIN = 1 << 20
"""Bytes reserved for HDF5's own headers and indices, beside an estimate of those of the chunks."""

SCALE_PIECE = 1 << 24
"""Entries of a dimension scale that are written at a time."""

PER_CHUNK = 512
"""Bytes that the index takes for a chunk, at most."""


def stored(data: Trajectories, label: str) -> Content:
    """What a file holds of these trajectories.

    Raises
    ------
    DataError
        If they break a rule of the schema.
    """
    return content_of(data, label)[0]


def save_slices(path: str | Path, slices: Iterable[Content], sizes: Mapping[str, int], force: bool = False) -> str:
    """Write a trajectory file whole or not at all, while its trajectories come in.

    Parameters
    ----------
    slices : iterable of Content
        From `stored`, at least one; of the first come all attributes.
    sizes : mapping of str to int
        Trajectories in all (``traj``), their samples (``obs``), and input samples where there are any (``uobs``).

    Returns
    -------
    str
        The sha256 of the file.

    Raises
    ------
    DataError
        If the trajectories are not as many as said.
    OutputError
        If the file exists and `force` is false, or cannot be written.
    """
    label = display(path)

    def fill(descriptor: int, temporary: str) -> str:
        reserve(descriptor, 0, MARGIN)
        with h5py.File(temporary, "w", libver=("v110", "v110"), locking=False, rdcc_nbytes=0) as file:
            _write(file, descriptor, iter(slices), sizes, label)
            file.flush()
            size = file.id.get_filesize()
        return _finished(descriptor, temporary, size)

    return write_in_place(path, fill, force)


def save_content(path: str | Path, content: Content, dimensions: Mapping[str, int], force: bool = False) -> str:
    """Write a file of which not everything is in memory, whole or not at all.

    The bytes depend on the content alone, wherever it is; they are those of `encode` but for the number in the first 48
    that says where the file ends, which HDF5 corrects when it closes a file.

    Returns
    -------
    str
        The sha256 of the file.

    Raises
    ------
    OutputError
        If the file exists and `force` is false, or cannot be written.
    """

    def fill(descriptor: int, temporary: str) -> str:
        with h5py.File(temporary, "w", libver=("v110", "v110"), locking=False) as file:

            def room(size: int) -> None:
                reserve(descriptor, file.id.get_filesize(), size + size // 1000 + MARGIN)

            room(0)
            write_content(file, content, dimensions, room)
            file.flush()
            size = file.id.get_filesize()
        return _finished(descriptor, temporary, size)

    return write_in_place(path, fill, force)


def save_in_place(path: str | Path, data: Trajectories, force: bool = False) -> str:
    """Write trajectories that are in memory without an image of the file beside them; returns the sha256.

    Raises
    ------
    DataError, OutputError
        As from `save_trajectories`.
    """
    return save_content(path, *content_of(data, display(path)), force)


def _finished(descriptor: int, temporary: str, size: int) -> str:
    """Give back what was reserved and not needed; the sha256 of what is left."""
    os.ftruncate(descriptor, size)
    with open(temporary, "rb", buffering=0) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write(file: h5py.File, descriptor: int, slices: Iterator[Content], sizes: Mapping[str, int], label: str) -> None:
    """Make the arrays as the first slice has them, and fill them."""
    first = next(slices)
    lengths = dict(sizes)
    if "u_time" in first.arrays:  # clocks of one length, as simulations have them, unless said otherwise
        each = first.arrays["u_time"].shape[0] // first.arrays["row_size"].shape[0]
        lengths.setdefault("uobs", sizes["traj"] * each)
    for array in first.arrays.values():
        if "harm" in array.dimensions:
            lengths["harm"] = array.shape[1]
    if any(is_long(value) for value in first.attributes.values()):
        raise DataError(f"{label}: its provenance is too long for an attribute.", "Shorten the options.")
    write_attributes(file, first.attributes)
    for name, length in lengths.items():
        _write_scale(file, descriptor, name, length)
    columns = {name: _Column(file, descriptor, name, array, lengths) for name, array in first.arrays.items()}
    for content in chain([first], slices):
        for name, array in content.arrays.items():
            columns[name].add(array.read())
    for name, column in columns.items():
        column.finish()
        if column.written != column.length:
            raise DataError(f"{label}: '{name}' got {column.written} of {column.length} entries.", "")


def _write_scale(file: h5py.File, descriptor: int, name: str, length: int) -> None:
    """A dimension scale as `content` writes them, its zeros a piece at a time."""
    zeros = Array.of(np.zeros(0, np.int8), (name,))
    column = _Column(file, descriptor, name, zeros, {name: length}, scales=False)
    for begin in range(0, length, SCALE_PIECE):
        column.add(np.zeros(min(SCALE_PIECE, length - begin), np.int8))
    column.finish()
    column.data.make_scale(DIMENSION_ONLY.format(size=length))


class _Column:
    """An array of the file whose rows come in."""

    def __init__(
        self,
        file: h5py.File,
        descriptor: int,
        name: str,
        array: Array,
        lengths: Mapping[str, int],
        *,
        scales: bool = True,
    ) -> None:
        self.file, self.descriptor = file, descriptor
        self.length = lengths[array.dimensions[0]]
        shape = (self.length, *array.shape[1:])
        chunks = chunk_shape(shape, array.dtype.itemsize)
        self.step = chunks[0]
        settings: dict[str, Any] = {"shuffle": True, "compression": 4, "fletcher32": True} if self.length else {}
        self.data = file.create_dataset(
            name, shape, array.dtype, chunks=chunks if self.length else None, track_times=False, **settings
        )
        for axis, scale in enumerate(array.dimensions if scales else ()):
            self.data.dims[axis].attach_scale(file[scale])
        write_attributes(self.data, array.attributes)
        self.waiting: list[NDArray[Any]] = []
        self.count = self.written = 0

    def add(self, rows: NDArray[Any]) -> None:
        """Take the next rows, and write what fills chunks."""
        self.waiting.append(rows)
        self.count += len(rows)
        if self.count >= self.step:
            rows = np.concatenate(self.waiting)
            whole = len(rows) // self.step * self.step
            self._put(rows[:whole])
            self.waiting, self.count = [rows[whole:].copy()], len(rows) - whole

    def finish(self) -> None:
        """Write what is left."""
        if self.count:
            self._put(np.concatenate(self.waiting))
            self.waiting, self.count = [], 0

    def _put(self, rows: NDArray[Any]) -> None:
        chunks = -(-len(rows) // self.step)
        most = chunks * (self.step * int(np.prod(rows.shape[1:], dtype=np.int64)) * rows.dtype.itemsize + PER_CHUNK)
        reserve(self.descriptor, self.file.id.get_filesize(), most + most // 1000 + MARGIN)
        self.data[self.written : self.written + len(rows)] = rows
        self.written += len(rows)
