"""Files as bytes: read whole before anything looks inside.

Reading takes the bytes and closes the file, so that what is checked is what is used, and ``-`` (standard input) is
a file like any other.
"""

from __future__ import annotations

import os
import stat
import sys
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, TypeVar

from snet_cli.errors import CheckpointError, DataError, UsageError

T = TypeVar("T")

MAX_BYTES = 2**30
"""Default of ``--max-bytes``: the largest file, and the largest content, that is read without being told to."""

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"

STDIN_LABEL = "standard input"

BLOCK = 1 << 22
HEAD = 1 << 16
"""Bytes by which a file is judged before the rest is read."""

PICKLE_HINT = "Such files can run code when they are read, so snet never does. Export the numbers: snet import --help"


def display(path: str | Path) -> str:
    """A path for a message: control characters and bytes that are not UTF-8 escaped, ``-`` in words."""
    text = str(path)
    if text == "-":
        return STDIN_LABEL
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def read_image(
    path: str | Path, max_bytes: int = MAX_BYTES, error: type[DataError | CheckpointError] = DataError
) -> bytes:
    """All bytes of an HDF5 file, read from the disk or from standard input (``-``).

    Parameters
    ----------
    path : str or Path
    max_bytes : int
        Larger files are refused.
    error : type
        `DataError` where data is expected, `CheckpointError` where a checkpoint is: decides the exit code.

    Raises
    ------
    DataError or CheckpointError
        If the file is missing, unreadable, empty, too large, or no HDF5 file by its first bytes.
    """
    label = display(path)
    try:
        if str(path) == "-":
            if sys.stdin.isatty():
                raise UsageError(
                    "standard input is a terminal, expected a file of snet.",
                    "Pipe one in: snet simulate vehicle -o - | snet fit - -o model.h5",
                )
            return _read_stream(sys.stdin.buffer, label, max_bytes, error)
        if os.path.isdir(path):
            raise error(f"{label}: is a directory, expected a file.", "Name the file inside it.")
        with open(path, "rb", buffering=0) as stream:
            found = os.fstat(stream.fileno())
            if not stat.S_ISREG(found.st_mode):
                with BufferedReader(stream) as pipe:
                    return _read_stream(pipe, label, max_bytes, error)
            check_signature(stream.read(HEAD), label, error)
            _check_size(found.st_size, label, max_bytes, error)
            stream.seek(0)
            image = stream.read(found.st_size)  # in one piece: no second copy in memory
            return image if len(image) == found.st_size else image + stream.read()
    except FileNotFoundError:
        raise error(f"{label}: no such file.", "Check the path.") from None
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the path
        reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
        raise error(f"{label}: cannot be read: {reason}.", "Check the path and its permissions.") from None


def file_size(path: str | Path, label: str, max_bytes: int, error: type[DataError | CheckpointError]) -> int:
    """Bytes of a regular file whose first ones are those of HDF5.

    Raises
    ------
    DataError or CheckpointError
        As from `read_image`, or if it is a pipe.
    """
    try:
        with open(path, "rb", buffering=0) as stream:
            found = os.fstat(stream.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise error(f"{label}: is no regular file, so it cannot be read in parts.", "Copy it to a disk.")
            check_signature(stream.read(HEAD), label, error)
    except (OSError, ValueError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
        raise error(f"{label}: cannot be read: {reason}.", "Check the path and its permissions.") from None
    _check_size(found.st_size, label, max_bytes, error)
    return found.st_size


def _check_size(size: int, label: str, max_bytes: int, error: type[DataError | CheckpointError]) -> None:
    if size > max_bytes:
        raise error(
            f"{label}: has {size} bytes, more than the limit of {max_bytes}.",
            f"If you trust the file, raise the limit: --max-bytes {size}",
        )


def _read_stream(
    stream: BinaryIO | BufferedReader, label: str, max_bytes: int, error: type[DataError | CheckpointError]
) -> bytes:
    """The stream's bytes; its first block is judged before the rest is read, so endless streams end early."""
    blocks = [stream.read(BLOCK)]
    check_signature(blocks[0], label, error)
    total = len(blocks[0])
    while block := stream.read(BLOCK):
        blocks.append(block)
        total += len(block)
        if total > max_bytes:
            raise error(f"{label}: has more than the limit of {max_bytes} bytes.", "Raise the limit: --max-bytes SIZE")
    _check_size(total, label, max_bytes, error)
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)


def check_signature(head: bytes, label: str, error: type[DataError | CheckpointError] = DataError) -> None:
    """Refuse by the first bytes what is no HDF5 file, and say what it is.

    Raises
    ------
    DataError or CheckpointError
    """
    if head.startswith(HDF5_SIGNATURE):
        return
    if not head:
        raise error(f"{label}: is empty, expected an HDF5 file.", "Was the program that wrote it stopped?")
    if any(head[at : at + 8] == HDF5_SIGNATURE for at in _user_block_ends(len(head))):
        raise error(f"{label}: the HDF5 data stands behind a user block, which is not read.", "Remove it with h5unjam.")
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        raise error(f"{label}: is a Python pickle, expected an HDF5 file.", PICKLE_HINT)
    if head.startswith(b"PK\x03\x04"):
        if b"data.pkl" in head[:4096]:
            raise error(f"{label}: is a PyTorch file (a zip with a pickle), expected an HDF5 file.", PICKLE_HINT)
        raise error(f"{label}: is a zip archive, expected an HDF5 file.", "For NPZ: snet import FILE.npz -o data.h5")
    if head.startswith(b"\x93NUMPY"):
        raise error(f"{label}: is a NumPy array, expected an HDF5 file.", "Save an .npz, then: snet import --help")
    if head.startswith(b"MATLAB 5.0"):
        raise error(f"{label}: is a MATLAB file, expected an HDF5 file.", "Convert it: snet import FILE.mat -o data.h5")
    if head.startswith(b"CDF"):
        raise error(f"{label}: is a netCDF-3 file, expected HDF5.", "Convert it: nccopy -k netCDF-4 FILE data.h5")
    if b"\x00" not in head[:4096]:
        raise error(f"{label}: is a text file, expected an HDF5 file.", "For CSV: snet import FILE.csv -o data.h5")
    raise error(f"{label}: is not an HDF5 file (its first bytes are wrong).", "Check that it is the file you mean.")


def _user_block_ends(length: int) -> list[int]:
    """Where HDF5 looks for its signature behind a user block: 512, 1024, 2048, ... bytes."""
    return [512 << k for k in range(max(length // 512, 1).bit_length())]
