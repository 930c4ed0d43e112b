"""`--metrics FILE.csv`: one row per iteration, written as training goes, so that `tail -f` shows it."""

from __future__ import annotations

import csv
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from snet_cli.errors import OutputError
from snet_cli.training.loop import Progress

COLUMNS = ("iteration", "residual", "misfit", "total", "held_out", "seconds")


class MetricsFile:
    """A CSV file that is open during training, or nothing."""

    def __init__(self, stream: TextIO | None, begun: bool = False) -> None:
        self.stream = stream
        self.writer = None if stream is None else csv.writer(stream)
        if self.writer is not None and not begun:
            self.writer.writerow(COLUMNS)

    @classmethod
    def open(cls, path: str | None, force: bool, iteration: int | None = None) -> Self:
        """Open the file; an existing one is refused without `force`.

        Parameters
        ----------
        iteration : int, optional
            Where a resumed run goes on: rows of later iterations, which are done again, and a torn one give way.

        Raises
        ------
        OutputError
            If it exists, or cannot be written.
        """
        if path is None:
            return cls(None)
        try:
            if iteration is not None and Path(path).exists():
                return cls(_cut(path, iteration), begun=True)
            return cls(Path(path).open("w" if force else "x", newline="", encoding="utf-8"))
        except FileExistsError:
            raise OutputError(f"{path}: exists already.", "Use --force to overwrite it.") from None
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}.", "Choose another place.") from error

    def write(self, progress: Progress) -> None:
        """Write one row and flush it: a person may be watching the file."""
        if self.writer is None or self.stream is None:
            return
        held_out = "" if progress.held_out is None else repr(progress.held_out)
        row = (progress.iteration, progress.residual, progress.misfit, progress.total, held_out, progress.seconds)
        self.writer.writerow(row)
        self.stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.stream is not None:
            self.stream.close()


def _cut(path: str, iteration: int) -> TextIO:
    """The file, open for appending behind the row of this iteration.

    Raises
    ------
    OutputError
        If it is no file of metrics.
    """
    stream = Path(path).open("r+", newline="", encoding="utf-8")
    head, *rows = stream.read().split("\r\n")
    if head != ",".join(COLUMNS):
        stream.close()
        raise OutputError(f"{path}: exists already, and is no file of metrics.", "Use another name.")
    kept = [row for row in rows[:-1] if int(row.partition(",")[0]) <= iteration]
    stream.seek(0)
    stream.truncate()
    stream.write("\r\n".join([head, *kept, ""]))
    return stream
