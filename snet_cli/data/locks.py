"""Locks that end with their process: one for each output that takes long, one on every temporary file.

The kernel drops a lock (`flock`) when its holder ends, however it ends, so that nothing has to be guessed from process
ids: a lock file that nobody holds is free, a temporary file that nobody holds is garbage.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from snet_cli.errors import OutputError

TEMPORARY_PREFIX, TEMPORARY_SUFFIX = ".snet-", ".tmp"
"""Around the random name of temporary files: short, so that targets may use all 255 bytes of a name."""

LOCK = ".snet-{name}.lock"
"""Lock file of an output, by a digest of its name; gone when the lock is released."""

NO_LOCK_FILE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE)
"""Errors that say nothing about locks, only that no file can be made here."""


@contextmanager
def output_lock(path: str | Path, label: str) -> Iterator[None]:
    """Inside, no other process holds the lock of this output; readers need none.

    The lock belongs to the open lock file, so that it ends with the process, however that ends. Where the file system
    has no locks there is none; where the lock file cannot be made for want of room or files, the output could not be
    made either.

    Parameters
    ----------
    path : str or Path
    label : str
        The path as a message shows it.

    Raises
    ------
    OutputError
        At once, if another process has it, or a lock file cannot be made.
    """
    from filelock import FileLock, Timeout  # 20 ms, which most commands need not wait for

    target = os.path.realpath(path)
    name = hashlib.sha256(os.fsencode(os.path.basename(target))).hexdigest()[:16]
    lock_file = os.path.join(os.path.dirname(target), LOCK.format(name=name))
    lock = FileLock(lock_file, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise OutputError(
            f"{label}: is in use: another snet is writing it.", "Wait for it, or choose another name."
        ) from None
    except (OSError, NotImplementedError) as problem:
        if isinstance(problem, OSError) and problem.errno in NO_LOCK_FILE:
            raise OutputError(
                f"{label}: cannot be locked: {problem.strerror}.", "Free some room, or choose another place."
            ) from None
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(lock_file)  # while it is still held: whoever opened it meanwhile sees that its name is gone
        lock.release()


def open_temporary(folder: str) -> tuple[int, str]:
    """A new file under our lock, open for writing, and its name.

    Raises
    ------
    OSError
    """
    while True:
        name = f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
        temporary = os.path.join(folder, name)
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
        with suppress(OSError):  # a file system without locks: nobody can sweep there either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, temporary
        os.close(descriptor)  # swept between its creation and its lock


def sweep(folder: str) -> None:
    """Remove temporary files whose writers are dead: nobody holds their locks any more."""
    with suppress(OSError), os.scandir(folder) as entries:
        found = [e.path for e in entries if e.name.startswith(TEMPORARY_PREFIX) and e.name.endswith(TEMPORARY_SUFFIX)]
        for path in found:
            with suppress(OSError):
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(path)
                finally:
                    os.close(descriptor)
