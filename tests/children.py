"""Commands of `snet` in forks of this process, which has everything imported: how each ended, and what it took."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from snet_cli.cli.main import main

LOG, GREW = "log.txt", "grew.txt"


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes
    ----------
    code : int or None
        Exit code, negative for a signal; None where it was killed at the asked time.
    said : str
        What it wrote to stderr.
    seconds : float
    latency : float
        Seconds from the signal that was sent to the end; NaN without one.
    grew_mb : float
        How far its memory grew beyond that of the interpreter and its imports.
    """

    code: int | None
    said: str
    seconds: float
    latency: float
    grew_mb: float


def run_child(
    args: Sequence[object],
    *,
    after: float | None = None,
    number: int = signal.SIGKILL,
    limit: float = 300.0,
    before: Callable[[], None] | None = None,
) -> Ended:
    """Run a command in a fork, and send it a signal after so many seconds, if it still runs then.

    Parameters
    ----------
    before : callable, optional
        What the child does first: set a limit, become another user.
    """
    child = _fork(args, before)
    begin, sent = time.monotonic(), None
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        now = time.monotonic()
        if done:
            break
        if after is not None and sent is None and now - begin >= after:
            os.kill(child, number)
            sent = now
        if now - begin > limit:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"{args}: took longer than {limit} s")
        time.sleep(0.002)
    code: int | None = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGKILL and sent is not None and number == signal.SIGKILL:
        code = None
    grew = Path(GREW).read_text() if os.path.exists(GREW) else "nan"
    said = Path(LOG).read_text(errors="replace") if os.path.exists(LOG) else ""
    return Ended(code, said, now - begin, now - sent if sent is not None else float("nan"), float(grew or "nan"))


def _fork(args: Sequence[object], before: Callable[[], None] | None) -> int:
    sys.stdout.flush()
    with open(LOG, "wb"), open(GREW, "wb"):
        log, grew = os.open(LOG, os.O_WRONLY), os.open(GREW, os.O_WRONLY)  # open before the child has limits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forks and threads: the child computes on one
        child = os.fork()
    if child:
        os.close(log)
        os.close(grew)
        return child
    code = 99
    try:
        held = _kilobytes("VmRSS:")
        sys.stdout = open(os.devnull, "w")
        sys.stderr = os.fdopen(log, "w")
        if before is not None:
            before()
        code = main([str(arg) for arg in args])
        sys.stderr.flush()
        os.write(grew, f"{(_kilobytes('VmHWM:') - held) / 1e3:.1f}".encode())
    finally:
        os._exit(code)


def _kilobytes(name: str) -> float:
    return float(Path("/proc/self/status").read_text().partition(name)[2].split()[0])


def limit_file_size(size: int) -> Callable[[], None]:
    """What a child does first so that no file may grow beyond this."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def leftovers(folder: str | Path = ".") -> list[str]:
    """Temporary files and locks of ours in a folder."""
    return sorted(name for name in os.listdir(folder) if name.startswith(".snet-"))
