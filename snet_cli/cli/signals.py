"""Signals as the shell knows them: INT, TERM and HUP end a command with 130, 143 and 129, and never leave a torn file.

Most commands end at once: the signal becomes an exception, so that temporary files are removed on the way out. Once
`fit` trains, the first signal only raises a flag; the loop finishes its step and writes the model so far. A second
Ctrl-C ends that too.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that ask a command to end; Windows has no SIGHUP."""


class Interrupted(BaseException):
    """A signal that ends the command; like `KeyboardInterrupt` nothing but `main` catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it."""
        return 128 + self.number


class StopFlag:
    """Whether a signal asked to stop, and which."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.awaited = False
        """Whether anybody has begun to look: before that there is nothing to finish."""

    def __bool__(self) -> bool:
        return self.number is not None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number; 0 where there was none."""
        return 0 if self.number is None else 128 + self.number


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Inside, a signal raises `Interrupted`."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    with _handled(end):
        yield


@contextmanager
def finishing_first() -> Iterator[StopFlag]:
    """Inside, the first signal raises the flag, once somebody looks at it; a second one raises `Interrupted`."""
    flag = StopFlag()

    def remember(number: int, frame: FrameType | None) -> None:
        if flag or not flag.awaited:
            raise Interrupted(number)
        flag.number = number

    with _handled(remember):
        yield flag


@contextmanager
def _handled(handler: signal._HANDLER) -> Iterator[None]:
    """Install a handler and put the old ones back; what `nohup` ignores stays ignored."""
    before = {}
    if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
