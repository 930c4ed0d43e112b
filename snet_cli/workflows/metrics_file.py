"""`--metrics FILE.csv`: one row per iteration, written as training goes, so that `tail -f` shows it.

With several models (`--seeds`, `--folds`) a last column says whose it is.
"""

from __future__ import annotations

import csv
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from snet_cli.errors import OutputError
from snet_cli.training.loop import Progress
from snet_cli.workflows.resume import previous_path, state_path

COLUMNS = ("iteration", "residual", "misfit", "total", "held_out", "seconds")
MEMBER = "member"
"""The column of several models."""


def check_metrics(path: str, *outputs: str) -> None:
    """Refuse the name of another output, or of a state beside one.

    Raises
    ------
    OutputError
    """
    own = os.path.realpath(path)
    for output in outputs:
        if own in (os.path.realpath(name) for name in (output, state_path(output), previous_path(output))):
            raise OutputError(f"{path}: another output of this command has that name.", "Choose another --metrics.")


class MetricsFile:
    """A CSV file that is open during training, or nothing."""

    def __init__(self, stream: TextIO | None, columns: tuple[str, ...] = COLUMNS, *, begun: bool = False) -> None:
        self.stream = stream
        self.writer = None if stream is None else csv.writer(stream)
        self.lock = threading.Lock()  # models side by side have a thread each
        if self.writer is not None and self.stream is not None and not begun:
            self.writer.writerow(columns)
            self.stream.flush()

    @classmethod
    def open(
        cls, path: str | None, force: bool, done: Mapping[str, int] | None = None, *, several: bool = False
    ) -> Self:
        """Open the file; an existing one is refused without `force`.

        Parameters
        ----------
        done : mapping of str to int, optional
            Where a resumed run goes on, by member ("" where there is one model): rows of later iterations, which are
            done again, and a torn one give way.
        several : bool
            Whether rows name their model.

        Raises
        ------
        OutputError
            If it exists, or cannot be written.
        """
        columns = (*COLUMNS, MEMBER) if several else COLUMNS
        if path is None:
            return cls(None)
        try:
            if done is not None and Path(path).exists():
                return cls(_cut(path, columns, done), columns, begun=True)
            return cls(Path(path).open("w" if force else "x", newline="", encoding="utf-8"), columns)
        except FileExistsError:
            raise OutputError(f"{path}: exists already.", "Use --force to overwrite it.") from None
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}.", "Choose another place.") from error

    def write(self, progress: Progress, *member: str) -> None:
        """Write one row and flush it: a person may be watching the file."""
        if self.writer is None or self.stream is None:
            return
        held_out = "" if progress.held_out is None else repr(progress.held_out)
        row = (progress.iteration, progress.residual, progress.misfit, progress.total, held_out, progress.seconds)
        with self.lock:
            self.writer.writerow((*row, *member))
            self.stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.stream is not None:
            self.stream.close()


def _cut(path: str, columns: tuple[str, ...], done: Mapping[str, int]) -> TextIO:
    """The file, open for appending behind the rows of these iterations.

    Raises
    ------
    OutputError
        If it is no file of metrics.
    """
    stream = Path(path).open("r+", newline="", encoding="utf-8")
    wanted = ",".join(columns)
    try:
        head, *rows = stream.read().split("\r\n")
        if not rows and wanted.startswith(head):  # torn before it was complete
            head = wanted
        kept = [row for row in rows[:-1] if _is_done(row.split(","), done)]
    except ValueError:  # no number, or no text at all
        head = ""
    if head != wanted:
        stream.close()
        raise OutputError(f"{path}: exists already, and is no file of metrics like these.", "Use another name.")
    stream.seek(0)
    stream.truncate()
    stream.write("\r\n".join([head, *kept, ""]))
    return stream


def _is_done(cells: list[str], done: Mapping[str, int]) -> bool:
    member = "".join(cells[len(COLUMNS) :])
    return int(cells[0]) <= done.get(member, 0)
