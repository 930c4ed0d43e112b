"""Files that are imported: read whole or their first bytes, and what kind they are, by these and never by the name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from snet_cli.errors import DataError

HEAD = 65_536
"""First bytes by which the kind of a file is judged."""

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAT_USER_BLOCK = 512

Kind = Literal["csv", "npz", "mat5", "mat73", "own"]

FOREIGN = (
    (b"\x93NUMPY", "is a single NumPy array", "Save all arrays of the recording with numpy.savez."),
    (b"PAR1", "is a Parquet file", "Export it as CSV."),
    (b"ARROW1", "is an Arrow file", "Export it as CSV."),
    (b"\x1f\x8b", "is packed with gzip", "Unpack it first."),
    (b"BZh", "is packed with bzip2", "Unpack it first."),
    (b"\xfd7zXZ", "is packed with xz", "Unpack it first."),
    (b"\x28\xb5\x2f\xfd", "is packed with zstd", "Unpack it first."),
    (b"%PDF", "is a PDF document", "Export the table as CSV."),
    (b"CDF\x01", "is a netCDF 3 file", "Export its variables as NPZ or CSV."),
    (b"CDF\x02", "is a netCDF 3 file", "Export its variables as NPZ or CSV."),
    (b"\x80\x02", "is a pickle, which is never loaded", "Save the arrays with numpy.savez."),
    (b"\x80\x03", "is a pickle, which is never loaded", "Save the arrays with numpy.savez."),
    (b"\x80\x04", "is a pickle, which is never loaded", "Save the arrays with numpy.savez."),
    (b"\x80\x05", "is a pickle, which is never loaded", "Save the arrays with numpy.savez."),
)
"""First bytes of files that users try, what they are, and the way out."""


def read_bytes(path: Path, max_bytes: int, first: int = -1) -> bytes:
    """The whole file, or its first bytes.

    Raises
    ------
    DataError
        If it is missing, not readable, empty, or larger than `max_bytes`.
    """
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise DataError(
                f"{path}: the file has {size} bytes, more than the limit of {max_bytes}.", "Raise --max-bytes."
            )
        with path.open("rb") as stream:
            data = stream.read(first)
    except OSError as error:
        raise unreadable(path, error) from None
    if not data:
        raise DataError(f"{path}: the file is empty.", "Check that the recording was written.")
    return data


def unreadable(path: Path, error: OSError) -> DataError:
    """The error for a file that the system does not give."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: there is no such file.", "Check the name.")
    if isinstance(error, IsADirectoryError):
        return DataError(f"{path}: this is a folder, expected a file.", f"Name its files: {path}/*.csv")
    return DataError(f"{path}: the file cannot be read ({error.strerror}).", "Check its permissions.")


def kind_of(data: bytes, source: str) -> Kind:
    """What a file is, by its first bytes.

    Raises
    ------
    DataError
        For a file of another kind.
    """
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "npz"
    if data.startswith(HDF5_SIGNATURE):
        return "own"
    if data[MAT_USER_BLOCK:].startswith(HDF5_SIGNATURE):
        return "mat73"
    if data[124:128] in (b"\x00\x01IM", b"\x01\x00MI"):
        return "mat5"
    for signature, what, hint in FOREIGN:
        if data.startswith(signature):
            raise DataError(f"{source}: the file {what}, expected CSV, NPZ or MAT.", hint)
    if b"\x00" in data[:HEAD] and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(
            f"{source}: the file is binary and of no known kind, expected CSV, NPZ or MAT (v5 to v7.3).",
            "Export the recording as CSV, or save it with numpy.savez.",
        )
    return "csv"
