"""MAT files as arrays by name: v5 to v7.2 (see `mat5`) and v7.3, which is HDF5 behind 512 bytes.

Both are foreign files and read without trust. In v7.3 only plain data sets are looked at, by hard links, with known
filters and declared sizes within bounds; variable-length attributes, which can hang the HDF5 library, are never read.
v4 files have no signature and are refused.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.channel_spec import shorten
from snet_cli.data.mat5 import DamageError, TooLargeError, read_mat5
from snet_cli.data.table_arrays import ArrayFile
from snet_cli.errors import DataError

DEFLATE_RATIO = 1_100
"""More than deflate can gain (1 032): a data set that declares more is no honest one."""

MAX_OBJECTS = 10_000
MAX_DEPTH = 4
DEFLATE, SHUFFLE, FLETCHER32 = 1, 2, 3
MATLAB_CLASSES = (
    "",
    "double",
    "single",
    "logical",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)


def open_mat5(data: bytes, source: str, stem: str, max_bytes: int) -> ArrayFile:
    """The arrays of a MAT file v5 to v7.2; fields of a structure s are ``s.field``.

    Raises
    ------
    DataError
        For a damaged file, or one whose elements inflate to more than `max_bytes`.
    """
    try:
        arrays, refused = read_mat5(data, max_bytes)
    except DamageError as error:
        raise _damaged(source, str(error)) from None
    except TooLargeError:
        raise DataError(
            f"{source}: the arrays take more than the limit of {max_bytes} bytes.",
            "Raise --max-bytes if you trust the file.",
        ) from None
    if not arrays:
        raise _no_arrays(source, refused)
    shapes = {name: array.shape for name, array in arrays.items()}
    return ArrayFile(source=source, stem=stem, shapes=shapes, read=arrays.__getitem__, refused=refused)


def open_mat73(data: bytes, source: str, stem: str, max_bytes: int) -> ArrayFile:
    """The arrays of a MAT file v7.3; fields of a structure s are ``s.field``.

    MATLAB stores columns first, so that HDF5 sees every matrix transposed; it is turned back here.

    Raises
    ------
    DataError
        For a damaged or hostile file, or one without arrays.
    """
    import h5py  # costs 0.1 s at import and only MAT files v7.3 need it here

    try:
        with h5py.File.in_memory(data) as file:
            found: dict[str, Any] = {}
            refused: dict[str, str] = {}
            _survey(file, "", found, refused, len(data), MAX_DEPTH, [MAX_OBJECTS])
            total = sum(math.prod(dataset.shape) * dataset.dtype.itemsize for dataset in found.values())
            if total > max_bytes:
                raise DataError(
                    f"{source}: the arrays declare {total} bytes, more than the limit of {max_bytes}.",
                    "Raise --max-bytes if you trust the file.",
                )
            shapes = {name: tuple(reversed(dataset.shape)) for name, dataset in found.items()}
            paths = {name: dataset.name for name, dataset in found.items()}
    except DataError:
        raise
    except Exception as error:  # h5py meets damage with errors of nearly every class
        raise _damaged(source, str(error)) from None
    if not shapes:
        raise _no_arrays(source, refused)

    def read(name: str) -> NDArray[Any]:
        try:
            with h5py.File.in_memory(data) as file:
                values: NDArray[Any] = np.asarray(file[paths[name]][()])
        except Exception as error:
            raise _damaged(source, str(error)) from None
        return values.T

    return ArrayFile(source=source, stem=stem, shapes=shapes, read=read, refused=refused)


def _survey(
    group: Any, prefix: str, found: dict[str, Any], refused: dict[str, str], stored: int, depth: int, left: list[int]
) -> None:
    """Collect the plain data sets below a group without following any link but hard ones."""
    import h5py

    for name in group:
        left[0] -= 1
        if left[0] < 0:
            raise ValueError(f"it holds more than {MAX_OBJECTS} objects")
        full = prefix + name
        if name.startswith("#"):  # MATLAB's own tables of references
            continue
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            refused[full] = "is a link, which is never followed"
            continue
        item = group[name]
        if isinstance(item, h5py.Group):
            if depth > 0:
                _survey(item, full + ".", found, refused, stored, depth - 1, left)
            continue
        reason = _refusal(item, stored)
        if reason:
            refused[full] = reason
        else:
            found[full] = item


def _refusal(dataset: Any, stored: int) -> str:
    """Why a data set is not read, or an empty text."""
    import h5py

    if not isinstance(dataset, h5py.Dataset):
        return "is no array"
    plist = dataset.id.get_create_plist()
    if dataset.id.get_type().get_class() not in (h5py.h5t.INTEGER, h5py.h5t.FLOAT):
        return "is no array of numbers"
    if dataset.shape is None or dataset.ndim > 2:
        return "has more than two dimensions"
    if dataset.is_virtual or plist.get_external_count():
        return "keeps its values in other files, which are never opened"
    filters = [plist.get_filter(number)[0] for number in range(plist.get_nfilters())]
    if any(code not in (DEFLATE, SHUFFLE, FLETCHER32) for code in filters):
        return "is packed with an unknown filter"
    if math.prod(dataset.shape) * dataset.dtype.itemsize > DEFLATE_RATIO * stored:
        return "declares a size that is not there"
    if _matlab_class(dataset) not in MATLAB_CLASSES or "MATLAB_empty" in dataset.attrs:
        return "is no array of numbers"
    return ""


def _matlab_class(dataset: Any) -> str:
    """The attribute MATLAB_class, if it is a text of fixed length; for texts are stored as numbers."""
    import h5py

    if "MATLAB_class" not in dataset.attrs:
        return ""
    kind = dataset.attrs.get_id("MATLAB_class").get_type()
    if not isinstance(kind, h5py.h5t.TypeStringID) or kind.is_variable_str():
        return "unknown"
    value = dataset.attrs["MATLAB_class"]
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


def _no_arrays(source: str, refused: dict[str, str]) -> DataError:
    for name, reason in refused.items():
        return DataError(f"{source}: '{shorten(name)}' {reason}.", "Save plain arrays of numbers.")
    return DataError(f"{source}: the file holds no arrays.", "Check that the recording was saved.")


def _damaged(source: str, reason: str) -> DataError:
    return DataError(f"{source}: the MAT file is damaged ({shorten(reason, 100)}).", "Copy or save the file again.")
