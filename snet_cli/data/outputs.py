"""Outputs that are written whole or not at all, and what is asked before any work.

Writing goes to a temporary file beside the target, which replaces it only when all bytes are on the disk: whatever
happens, the target is absent, old or complete. A temporary file is locked by the process that writes it, so that those
of dead processes are recognised, and swept by the next writer in that folder.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from snet_cli.data.locks import open_temporary, sweep
from snet_cli.data.storage import display
from snet_cli.errors import OutputError, UsageError

T = TypeVar("T")


def check_no_input_is_overwritten(output: str | Path, *inputs: str | Path | None) -> None:
    """An output must not be one of the files that are read, `--force` or not: a recording cannot be made again.

    Raises
    ------
    OutputError
        If two names are one file.
    """
    for path in inputs:
        if path in (None, "-") or output == "-":
            continue
        try:
            same = os.path.samefile(output, str(path))
        except OSError:
            continue  # one of them does not exist
        if same:
            raise OutputError(f"{display(output)}: is an input of this command too.", "Choose another output.")


def check_output(path: str | Path, force: bool = False) -> None:
    """Refuse an output that could not be written; to be called before any work.

    Raises
    ------
    OutputError
        If it exists and `force` is false, is no regular file, or its folder is missing or read-only.
    UsageError
        If it is ``-`` and standard output is a terminal.
    """
    if str(path) == "-":
        if sys.stdout.isatty():
            raise UsageError("standard output is a terminal; HDF5 is no text.", "Redirect it, or use -o FILE.h5")
        return
    label = display(path)
    try:
        target = _resolve(path)
        folder = os.path.dirname(target)
        if not os.path.isdir(folder):
            raise OutputError(f"{label}: there is no folder {display(folder)}.", "Make it first: mkdir -p")
        if os.path.lexists(target):
            mode = os.stat(target).st_mode
            if stat.S_ISDIR(mode):
                raise OutputError(f"{label}: is a directory, expected the name of a file.", "Add a file name.")
            if not stat.S_ISREG(mode):
                raise OutputError(f"{label}: is no regular file, so it cannot be replaced.", "For a pipe: -o -")
            if not force:
                raise OutputError(f"{label}: exists already.", "Choose another name, or overwrite it with --force.")
    except OSError as problem:
        raise _cannot_write(label, problem) from None
    if len(os.fsencode(os.path.basename(target))) > 255:
        raise OutputError(f"{label}: the name is longer than 255 bytes.", "Choose a shorter one.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{label}: the folder {display(folder)} is not writable.", "Choose another folder.")


def require_room(path: str | Path, size: float) -> None:
    """Refuse an output for which its disk has no room; to be called before long work.

    Parameters
    ----------
    size : float
        Bytes that all that will be written takes at once.

    Raises
    ------
    OutputError
    """
    try:
        disk = os.statvfs(os.path.dirname(_resolve(path)))
    except OSError:
        return  # a file system that does not tell; a write will
    free = disk.f_bavail * disk.f_frsize
    if size > free:
        raise OutputError(
            f"{display(path)}: needs {size / 1e6:.3g} MB on its disk, which has {free / 1e6:.3g} MB left.",
            "Free some room, or choose another disk.",
        )


def write_atomic(
    path: str | Path, data: bytes | Sequence[bytes], force: bool = False, previous: str | Path | None = None
) -> None:
    """Write a file whole or not at all; ``-`` is standard output.

    The bytes go to a temporary file in the target's folder, whose room is reserved first (a full disk shows before
    a byte is written), then to the disk (fsync), then the name is moved (`os.replace`; without `force` a hard link,
    which fails where the target exists by now). The folder's own fsync is best effort: without it, a power cut may
    bring the old file back, never a torn one. A symbolic link is followed, and stays.

    Parameters
    ----------
    previous : str or Path, optional
        Name in the same folder under which what `force` replaces stays: at every instant one of the two is complete.

    Raises
    ------
    OutputError
        If it cannot be written. What stood there before is intact and no temporary file is left.
    """
    blocks = [data] if isinstance(data, bytes) else list(data)
    check_output(path, force)
    label = display(path)
    try:
        if str(path) == "-":
            for block in blocks:
                sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()
            return
        target = _resolve(path)

        def fill(descriptor: int, temporary: str) -> None:
            reserve(descriptor, 0, sum(map(len, blocks)))
            for block in blocks:
                _write_all(descriptor, block)

        _write_beside(target, fill, force, None if previous is None else _resolve(previous))
    except FileExistsError:
        raise OutputError(f"{label}: exists already.", "Choose another name, or overwrite it with --force.") from None
    except BrokenPipeError:
        raise
    except OSError as problem:
        raise _cannot_write(label, problem) from None


def write_in_place(path: str | Path, fill: Callable[[int, str], T], force: bool = False) -> T:
    """Write a file that is too large for the memory as `write_atomic` does: whole or not at all.

    Parameters
    ----------
    fill : callable
        Gets the descriptor and the name of the temporary file, and writes into it; it calls `reserve` before it does,
        and may take as long as it needs. What it returns is returned.

    Raises
    ------
    OutputError
        If it cannot be written, or the path is ``-``. What stood there before is intact then, also after any other
        error of `fill`, and no temporary file is left.
    """
    check_output(path, force)
    label = display(path)
    if str(path) == "-":
        raise OutputError("standard output cannot hold an output that is larger than memory.", "Use -o FILE.h5")
    try:
        return _write_beside(_resolve(path), fill, force, None)
    except FileExistsError:
        raise OutputError(f"{label}: exists already.", "Choose another name, or overwrite it with --force.") from None
    except OSError as problem:
        raise _cannot_write(label, problem) from None


def _write_beside(target: str, fill: Callable[[int, str], T], force: bool, previous: str | None) -> T:
    folder = os.path.dirname(target)
    sweep(folder)
    descriptor, temporary = open_temporary(folder)
    held = os.dup(descriptor)  # keeps the lock until the file has its name
    try:
        try:
            result = fill(descriptor, temporary)
            if os.path.lexists(target):
                os.fchmod(descriptor, stat.S_IMODE(os.stat(target).st_mode))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if force or not _link(temporary, target):
            if previous is not None and os.path.lexists(target):
                os.replace(target, previous)
            os.replace(temporary, target)
    finally:
        with suppress(OSError):
            os.unlink(temporary)
        os.close(held)
    _sync_folder(folder)
    return result


def no_scratch(problem: OSError) -> OutputError:
    """The error where Python finds no room for a temporary file that is no output."""
    return OutputError(
        f"no temporary file can be made: {problem.strerror or problem}.",
        "Free some room where temporary files lie, or set TMPDIR to another folder.",
    )


def reserve(descriptor: int, begin: int, size: int) -> None:
    """Reserve room on the disk for bytes of a file, where the file system can.

    Raises
    ------
    OSError
        If the disk is full.
    """
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, begin, size)
        except OSError as problem:
            if problem.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _link(temporary: str, target: str) -> bool:
    """Give the file its name if nothing has it yet; False where the file system has no hard links.

    Raises
    ------
    FileExistsError
        If the target came into being since it was checked.
    """
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError as problem:
        if problem.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "exists", target) from None
        return False
    return True


def _sync_folder(folder: str) -> None:
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _resolve(path: str | Path) -> str:
    """The absolute path with symbolic links followed."""
    text = os.fspath(path)
    if "\0" in text:
        raise OSError(errno.EINVAL, "the name holds a NUL")
    if not os.path.basename(text):
        raise OSError(errno.EISDIR, "is a directory")
    return os.path.realpath(text)


def _cannot_write(label: str, problem: OSError) -> OutputError:
    hints = {
        errno.ENOSPC: "Free some room, or choose another disk.",
        errno.EDQUOT: "Free some room, or choose another disk.",
        errno.EFBIG: "The limit on file sizes (ulimit -f) is too small for it.",
        errno.ENAMETOOLONG: "Choose a shorter name.",
    }
    hint = hints.get(problem.errno or 0, "Choose another place. What stood there before is intact.")
    return OutputError(f"{label}: cannot be written: {problem.strerror or problem}.", hint)
