"""An HDF5 image as named arrays and attributes, and back: what both kinds of file share.

Every array is chunked and carries shuffle, gzip 4 and fletcher32; attributes are fixed-length UTF-8. Together with
the checksums that HDF5 1.10's own metadata has (object headers with their attributes, indices of chunks, heaps), no
byte that is read is without a checksum: a flipped bit is an error, never another number or another unit. The image
is built in memory with no times in it, so the same content gives the same bytes.

An HDF5 file cannot chunk a number without dimensions, nor an empty array: the first is written with one element and
the attribute ``snet_scalar``, the second without chunks (it has no values that could be damaged). Text that is too
long for an attribute goes to a uint8 array ``<name>_text`` with the attribute ``snet_attribute``, and comes back as
an attribute.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5f, h5z
from numpy.typing import ArrayLike, NDArray

from snet_cli.data import guard
from snet_cli.data.storage import MAX_BYTES, check_signature, file_size
from snet_cli.errors import CheckpointError, DataError

Value = str | int | float | NDArray[Any]

FileError = type[DataError | CheckpointError]

CHUNK_BYTES = 1 << 20
CHUNKS_AT_A_TIME = 4
"""Chunks of an array that is not in memory: those that are read and written together."""

MAX_TEXT = 60_000
"""Bytes of text in an attribute; HDF5 can hold 64 kB."""

BORROW_IMAGE = 0x2 | 0x4
"""HDF5 reads our bytes where they are (H5LT_FILE_IMAGE_DONT_COPY, DONT_RELEASE): half the memory. They must outlive
the file, which `open_content` closes before it returns."""

DIMENSION_ONLY = "This is a netCDF dimension but not a netCDF variable. {size:9d}"
"""What netCDF-4 calls a scale that stands for a length only, so that no program shows it as a variable."""

HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, IndexError, OverflowError, MemoryError)
"""What h5py raises on damaged files (UnicodeDecodeError is a ValueError, RecursionError a RuntimeError)."""


@dataclass(frozen=True)
class Array:
    """A named array of a file, read when it is asked for.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
        In the byte order of this machine.
    attributes : mapping
        Text, whole numbers and floats by name.
    read : callable
        Gives the values, shape `shape`; raises the file's error where they are damaged.
    checked : bool
        Whether a checksum covers the values.
    dimensions : tuple of str
        Names of the dimension scales; given on writing only.
    rows : callable, optional
        Gives the entries ``begin:end`` of the first axis; for values that are not in memory.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    attributes: Mapping[str, Value]
    read: Callable[[], NDArray[Any]]
    checked: bool = True
    dimensions: tuple[str, ...] = ()
    rows: Callable[[int, int], NDArray[Any]] | None = None

    def between(self, begin: int, end: int) -> NDArray[Any]:
        """Entries ``begin:end`` of the first axis."""
        return self.read()[begin:end] if self.rows is None else self.rows(begin, end)

    @classmethod
    def of(
        cls, values: ArrayLike, dimensions: tuple[str, ...] = (), attributes: Mapping[str, Value] | None = None
    ) -> Array:
        """Values in memory, to be written."""
        array = np.asarray(values)
        return cls(array.shape, array.dtype, attributes or {}, lambda: array, True, dimensions)

    def elsewhere(self, count: int, rows: Callable[[int, int], NDArray[Any]]) -> Array:
        """The same array with `count` entries that are read a range at a time when they are written."""
        return replace(self, shape=(count, *self.shape[1:]), rows=rows, read=lambda: rows(0, count))


@dataclass(frozen=True)
class Content:
    """Root attributes, and arrays by path (``time``, ``model/state/net.0.weight``)."""

    attributes: Mapping[str, Value]
    arrays: Mapping[str, Array] = field(default_factory=dict)

    def unchecked(self) -> list[str]:
        """Names of the arrays that no checksum covers."""
        return [name for name, array in self.arrays.items() if not array.checked]


@contextmanager
def open_content(
    image: bytes, label: str, error: FileError = DataError, max_bytes: int = MAX_BYTES
) -> Iterator[Content]:
    """The content of an HDF5 image, after the guard let it pass; arrays can be read while the context is open.

    Parameters
    ----------
    image : bytes
        The whole file.
    label : str
        Its name, for messages.
    error : type
        What to raise: `DataError` or `CheckpointError`.
    max_bytes : int
        Limit on what all arrays declare together.

    Raises
    ------
    DataError or CheckpointError
        If the file is foreign, damaged or hostile.
    """
    check_signature(image[:4096], label, error)
    with _translated(label, "its structure", error):
        file = h5py.File(h5f.open_file_image(image, flags=BORROW_IMAGE))
    with _guarded(file, len(image), label, error, max_bytes) as content:
        yield content


@contextmanager
def open_in_place(
    path: str | Path, label: str, error: FileError = DataError, max_bytes: int = MAX_BYTES
) -> Iterator[Content]:
    """The content of a file that is too large for the memory, after the same guard; its values stay on the disk.

    Raises
    ------
    DataError or CheckpointError
        If the file is missing, foreign, damaged or hostile.
    """
    size = file_size(path, label, max_bytes, error)
    with _translated(label, "its structure", error):
        file = h5py.File(path, "r", locking=False)
    with _guarded(file, size, label, error, max_bytes) as content:
        yield content


@contextmanager
def _guarded(file: h5py.File, size: int, label: str, error: FileError, max_bytes: int) -> Iterator[Content]:
    """What the guard lets pass of an open file, which is closed in the end."""
    try:
        with _translated(label, "its structure", error):
            guard.inspect(file, size, max_bytes)
        with _translated(label, "an attribute", error):
            attributes = _read_attributes(file)
        arrays = dict(_find_arrays(file, "", label, error))
        yield _unspill(Content(attributes, arrays))
    finally:
        with _translated(label, "its structure", error):
            file.close()


@contextmanager
def _translated(label: str, what: str, error: FileError) -> Iterator[None]:
    """Whatever h5py raises, as one of our errors."""
    try:
        yield
    except guard.RefusedError as refused:
        raise error(f"{label}: {refused.message}", refused.hint) from None
    except MemoryError:
        raise error(f"{label}: {what} does not fit into memory.", "Read it on a larger machine.") from None
    except HDF5_ERRORS as problem:
        reason = " ".join(str(problem).split())[:200]
        raise error(
            f"{label}: {what} is damaged or cut off ({reason}).", "Copy the file again, or take it from a backup."
        ) from None


def _find_arrays(group: h5py.Group, path: str, label: str, error: FileError) -> Iterator[tuple[str, Array]]:
    with _translated(label, f"the group '/{path}'", error):
        items = [(name, group[name]) for name in group]
    for name, item in items:
        if isinstance(item, h5py.Group):
            yield from _find_arrays(item, f"{path}{name}/", label, error)
            continue
        with _translated(label, f"'{path}{name}'", error):
            attributes = _read_attributes(item)
            plan = item.id.get_create_plist()
            compact = plan.get_layout() == h5d.COMPACT  # lies in the header, whose checksum covers it
            filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
            scalar = item.shape == (1,) and attributes.pop("snet_scalar", 0) == 1
            array = Array(
                shape=() if scalar else item.shape,
                dtype=item.dtype.newbyteorder("="),
                attributes=attributes,
                read=partial(_read_array, item, scalar, label, f"'{path}{name}'", error),
                checked=h5z.FILTER_FLETCHER32 in filters or compact or item.size == 0,
                rows=None if scalar else partial(_read_rows, item, label, f"'{path}{name}'", error),
            )
        yield path + name, array


def _read_array(item: h5py.Dataset, scalar: bool, label: str, name: str, error: FileError) -> NDArray[Any]:
    with _translated(label, name, error):
        values: NDArray[Any] = item[...]
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        return values.reshape(()) if scalar else values


def _read_rows(item: h5py.Dataset, label: str, name: str, error: FileError, begin: int, end: int) -> NDArray[Any]:
    with _translated(label, name, error):
        values: NDArray[Any] = item[begin:end]
        return values.astype(values.dtype.newbyteorder("="), copy=False)


def _read_attributes(item: h5py.Group | h5py.Dataset) -> dict[str, Value]:
    return {name: _plain(item.attrs[name]) for name in item.attrs if name.encode() not in guard.SCALE_ATTRIBUTES}


def _plain(value: Any) -> Value:
    """An attribute as text or number; lists of one number, as netCDF writes them, become the number."""
    if isinstance(value, h5py.Empty):
        return ""
    array = np.asarray(value)
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.size != 1:
        return array
    item: str | int | float = array.reshape(-1)[0].item()
    return item


def _unspill(content: Content) -> Content:
    """Text that was too long for an attribute, back among the attributes."""
    attributes, arrays = dict(content.attributes), dict(content.arrays)
    for name, array in content.arrays.items():
        attribute = array.attributes.get("snet_attribute")
        if isinstance(attribute, str) and array.dtype == np.uint8:
            attributes[attribute] = array.read().tobytes().decode("utf-8", "replace")
            del arrays[name]
    return Content(attributes, arrays)


def to_json(value: Any) -> str:
    """JSON without NaN and Infinity; characters are written as they are where UTF-8 has them.

    Raises
    ------
    ValueError, TypeError
        If the value holds anything that JSON has no word for.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, allow_nan=False)
    return text


def encode(content: Content, dimensions: Mapping[str, int] | None = None) -> bytes:
    """The bytes of an HDF5 file that holds this content (see `write_content`)."""
    with h5py.File.in_memory(libver=("v110", "v110")) as file:
        write_content(file, content, dimensions)
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def write_content(
    file: h5py.File,
    content: Content,
    dimensions: Mapping[str, int] | None = None,
    reserve: Callable[[int], None] = lambda size: None,
) -> None:
    """Write content into an empty file: in memory or on the disk, from memory or not, always the same bytes.

    Parameters
    ----------
    content : Content
        Written in the order given. Arrays without `Array.dimensions` get no scales; those with `Array.rows` are read
        and written a range at a time.
    dimensions : mapping of str to int, optional
        Dimension scales by name, with their lengths.
    reserve : callable
        Called with the bytes that will be written next, at most.
    """
    attributes = {k: v for k, v in content.attributes.items() if not is_long(v)}
    spilled = {k: str(v).encode() for k, v in content.attributes.items() if is_long(v)}
    write_attributes(file, attributes)
    for name, size in (dimensions or {}).items():
        _write_scale(file, name, size, reserve)
    for name, text in spilled.items():
        values = np.frombuffer(text, np.uint8)
        scale = f"{name}_bytes"
        if dimensions is not None:
            _write_scale(file, scale, values.size, reserve)
        scales = (scale,) if dimensions is not None else ()
        _write_array(file, f"{name}_text", Array.of(values, scales, {"snet_attribute": name}), reserve)
    for name, array in content.arrays.items():
        _write_array(file, name, array, reserve)


def is_long(value: Value) -> bool:
    """Whether a text is too long for an attribute."""
    return isinstance(value, str) and len(value.encode()) > MAX_TEXT


def _write_scale(file: h5py.File, name: str, size: int, reserve: Callable[[int], None]) -> None:
    """A dimension scale; its values mean nothing but are written, so that every chunk is there."""
    zeros = Array.of(np.zeros(0, np.int8)).elsewhere(size, lambda begin, end: np.zeros(end - begin, np.int8))
    _create(file, name, zeros, reserve).make_scale(DIMENSION_ONLY.format(size=size))


def _write_array(file: h5py.File, name: str, array: Array, reserve: Callable[[int], None]) -> None:
    attributes = dict(array.attributes)
    if array.shape == ():
        array = Array.of(array.read().reshape(1), array.dimensions)
        attributes["snet_scalar"] = 1
    dataset = _create(file, name, array, reserve)
    for axis, scale in enumerate(array.dimensions):
        dataset.dims[axis].attach_scale(file[scale])
    write_attributes(dataset, attributes)


def _create(file: h5py.File, name: str, array: Array, reserve: Callable[[int], None]) -> h5py.Dataset:
    """A data set with its values. The caller drops it before the next one is made: HDF5 places it when it is closed."""
    dtype = array.dtype.newbyteorder("<") if array.dtype.kind in "iuf" else array.dtype
    if 0 in array.shape:
        return file.create_dataset(name, data=array.read().astype(dtype, copy=False), track_times=False)
    chunks = chunk_shape(array.shape, dtype.itemsize)
    dataset = file.create_dataset(
        name, array.shape, dtype, chunks=chunks, shuffle=True, compression=4, fletcher32=True, track_times=False
    )
    count = array.shape[0]
    step = count if array.rows is None else chunks[0] * CHUNKS_AT_A_TIME
    for begin in range(0, count, step):
        values = array.between(begin, min(begin + step, count)).astype(dtype, copy=False)
        reserve(values.nbytes)
        dataset[begin : begin + len(values)] = values
    return dataset


def chunk_shape(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """The whole array, cut along its leading axes into pieces of at most `CHUNK_BYTES`."""
    chunk = list(shape)
    for axis in range(len(chunk)):
        rest = int(np.prod(chunk[axis + 1 :], dtype=np.int64)) * itemsize
        chunk[axis] = max(1, min(chunk[axis], CHUNK_BYTES // rest))
        if chunk[axis] > 1:
            break
    return tuple(chunk)


def write_attributes(item: h5py.Group | h5py.Dataset, attributes: Mapping[str, Value]) -> None:
    """Text as fixed-length UTF-8, numbers in 8 bytes."""
    for name, value in attributes.items():
        if isinstance(value, str):
            raw = value.encode()
            item.attrs.create(name, np.bytes_(raw), dtype=h5py.string_dtype("utf-8", max(len(raw), 1)))
        elif isinstance(value, int):
            item.attrs.create(name, value, dtype="<i8")
        else:
            item.attrs.create(name, value, dtype="<f8")
