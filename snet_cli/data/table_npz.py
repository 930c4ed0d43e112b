"""NPZ: a zip archive of arrays, read without trust.

What `numpy.load` believes is checked first: sizes that the archive declares against `max_bytes`, the size that an
array's own header declares against the bytes that are there, and the data type before any byte is interpreted.
Pickles are never loaded. A flipped bit fails the archive's CRC.
"""

from __future__ import annotations

import io
import math
import warnings
import zipfile
import zlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.channel_spec import listing, shorten
from snet_cli.data.table_arrays import ArrayFile
from snet_cli.errors import DataError

HEADER_BYTES = 16_384
"""Enough for the header of any plain array; NumPy's own limit for untrusted files is 10 000 characters."""


class ArrayHeader(NamedTuple):
    """What stands before the numbers of an array."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    offset: int


def open_npz(data: bytes, source: str, stem: str, max_bytes: int) -> ArrayFile:
    """The arrays of an NPZ file.

    Raises
    ------
    DataError
        For a damaged archive, one without plain arrays (`.pt` and `.xlsx` files are zip archives too), object arrays
        where no plain one is left, or arrays that declare more than `max_bytes` together.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        members = {info.filename[:-4]: info for info in archive.infolist() if info.filename.endswith(".npy")}
        total = sum(info.file_size for info in members.values())
        if total > max_bytes:
            raise DataError(
                f"{source}: the arrays declare {total} bytes, more than the limit of {max_bytes}.",
                "Raise --max-bytes if you trust the file.",
            )
        headers, refused = {}, {}
        for name, info in members.items():
            with archive.open(info) as stream:
                header = _header(stream.read(HEADER_BYTES), info.file_size)
            if isinstance(header, str):
                refused[name] = header
            else:
                headers[name] = header
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        raise _damaged(source, error) from None
    if not headers:
        raise _no_arrays(archive, source, refused)

    def read(name: str) -> NDArray[Any]:
        try:
            content = archive.read(members[name])
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
            raise _damaged(source, error) from None
        header = headers[name]
        flat = np.frombuffer(content, dtype=header.dtype, offset=header.offset)
        return flat.reshape(header.shape, order="F" if header.fortran_order else "C")

    shapes = {name: header.shape for name, header in headers.items()}
    return ArrayFile(source=source, stem=stem, shapes=shapes, read=read, refused=refused)


def _header(start: bytes, size: int) -> ArrayHeader | str:
    """The header of an array, or what is wrong with it."""
    stream = io.BytesIO(start)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # headers written by Python 2 are read with a warning
            version = np.lib.format.read_magic(stream)
            if version not in ((1, 0), (2, 0)):
                return "is no plain array"
            parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran_order, dtype = parse(stream)
    except (ValueError, SyntaxError, TypeError, EOFError, RecursionError, MemoryError):
        return "has a damaged header"
    if dtype.hasobject:
        return "holds Python objects, which are never loaded"
    if dtype.kind not in "fiubUS" or dtype.itemsize == 0:
        return f"holds {shorten(str(dtype))} and no numbers"
    if any(length < 0 for length in shape) or math.prod(shape) * dtype.itemsize != size - stream.tell():
        return "declares a size that is not there"
    return ArrayHeader(shape, fortran_order, dtype, stream.tell())


def _no_arrays(archive: zipfile.ZipFile, source: str, refused: dict[str, str]) -> DataError:
    names = archive.namelist()
    if refused:
        name, reason = next(iter(refused.items()))
        return DataError(f"{source}: '{shorten(name)}' {reason}.", "Save plain arrays of numbers with numpy.savez.")
    if any(name.endswith(".pkl") for name in names):
        return DataError(f"{source}: this is a PyTorch file, a pickle, which is never loaded.", "Save it as NPZ.")
    if "[Content_Types].xml" in names:
        return DataError(f"{source}: this is an office document, expected CSV, NPZ or MAT.", "Export it as CSV.")
    return DataError(
        f"{source}: the archive holds no arrays but {listing(names)}.", "Save arrays with numpy.savez, or unpack it."
    )


def _damaged(source: str, error: Exception) -> DataError:
    return DataError(
        f"{source}: the archive is damaged ({shorten(str(error) or type(error).__name__, 100)}).",
        "Copy or save the file again.",
    )
