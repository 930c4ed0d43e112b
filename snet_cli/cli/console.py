"""The terminal: results on stdout, everything for people on stderr; progress on one line that is rewritten.

Names come from files, so control characters are shown and never sent: no file can move the cursor or change colours.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from snet_cli.cli.signals import StopFlag
from snet_cli.distributed import ALONE, Team
from snet_cli.errors import SnetError
from snet_cli.workflows.reporter import Tick

REDRAW_SECONDS = 0.1
"""Shortest time between two states of the progress line on a terminal."""

LINE_SECONDS = 30.0
"""Time between two lines of progress where stderr is no terminal."""

FAREWELL = "This is a bug of snet. Please report it with the lines above, your command and `snet --version`."


def clean(text: str) -> str:
    """The text with control characters, escapes and surrogates shown as escapes; line feeds stay."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def jsonable(value: Any) -> Any:
    """A value as JSON can hold it: NaN and infinities become null, NumPy's scalars and arrays Python's own."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, str) or value is None or isinstance(value, bool | int):
        return value
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Sequence | set | frozenset):
        return [jsonable(item) for item in value]
    return str(value)


class Console:
    """What one run of the program says; a `Reporter` for the workflows.

    Of several processes only the lead says anything, but for an error, which whoever has the first one tells.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.is_lead = True
        self.team: Team = ALONE
        self.quiet = False
        self.verbose = False
        self.stop = StopFlag()
        self._json_printed = False
        self._line_open = False
        self._next_progress = -math.inf

    def note(self, text: str) -> None:
        """Say something once, unless `--quiet`."""
        if not self.quiet and self.is_lead:
            self._say(f"note: {text}")

    def detail(self, text: str) -> None:
        """Say something under `--verbose` only."""
        if self.verbose and self.is_lead:
            self._say(text)

    def should_stop(self) -> bool:
        """Whether a signal asked to stop."""
        self.stop.awaited = True
        return bool(self.stop)

    def progress(self, tick: Tick) -> None:
        """One line that is rewritten on a terminal; elsewhere one line every 30 s."""
        if self.quiet or not self.is_lead:
            return
        now, live = time.monotonic(), _is_terminal(sys.stderr)
        if self._next_progress == -math.inf and not live:
            self._next_progress = now + LINE_SECONDS
        if now < self._next_progress and not (live and tick.done >= tick.total):
            return
        self._next_progress = now + (REDRAW_SECONDS if live else LINE_SECONDS)
        if not live:
            self._say(progress_line(tick))
            return
        width = shutil.get_terminal_size().columns
        sys.stderr.write(f"\r{progress_line(tick)[: width - 1].ljust(width - 1)}")
        sys.stderr.flush()
        self._line_open = True

    def wrote(self, output: str | None, following: str = "") -> None:
        """Say what was written, and which command comes next."""
        if output is not None and output != "-" and not self.quiet and self.is_lead:
            self._say(f"wrote {output}" + (f"; next: {following}" if following else ""))

    def result(self, tree: Mapping[str, Any], lines: Sequence[str], failure: SnetError | None = None) -> None:
        """Print a result: as one JSON object, or as lines for people.

        Parameters
        ----------
        failure : SnetError, optional
            What the command will fail with although it has a result (a bound that is not met): stands in the same
            JSON object.
        """
        self._end_line()
        if not self.is_lead:
            return
        if self.as_json:
            self._print_json({**tree, **({} if failure is None else error_tree(failure))})
        elif lines:
            print(clean("\n".join(lines)))

    def error(self, error: SnetError) -> None:
        """Say what went wrong: one or two lines on stderr, and JSON on stdout where that was asked for."""
        if not (self.team.may_speak() if self.team.size > 1 else self.is_lead):
            return
        self._say(f"{_bold('error:', sys.stderr)} ", clean(error.message))
        if error.hint:
            self._say(error.hint)
        if self.as_json and not self._json_printed:
            self._print_json(error_tree(error))

    def _print_json(self, tree: Mapping[str, Any]) -> None:
        self._json_printed = True
        print(json.dumps(jsonable(tree), allow_nan=False))

    def _say(self, text: str, rest: str = "") -> None:
        self._end_line()
        print((text if rest else clean(text)) + rest, file=sys.stderr, flush=True)

    def _end_line(self) -> None:
        if self._line_open:
            sys.stderr.write("\n")
            self._line_open = False


def error_tree(error: SnetError) -> dict[str, Any]:
    """An error as `--json` prints it."""
    return {"error": {"code": error.code, "message": error.message, "hint": error.hint}}


def progress_line(tick: Tick) -> str:
    """``training 120/480  R 1.2e-04  held-out 2.0e-04  3.1 ms each  1 s left``."""
    parts = [f"{tick.phase} {tick.done}/{tick.total}"]
    parts += [f"R {tick.residual:.2e}"] if tick.residual is not None else []
    parts += [f"held-out {tick.held_out:.2e}"] if tick.held_out is not None else []
    parts += [f"{tick.ms_each:.3g} ms each"] if tick.ms_each is not None else []
    if tick.seconds_left is not None and math.isfinite(tick.seconds_left):
        parts.append(f"{duration(tick.seconds_left)} left")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """``45 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def number(value: float | None) -> str:
    """Four significant digits; a dash for what there is not."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.4g}"


def columns(rows: Sequence[Sequence[str]], right: bool = True) -> list[str]:
    """Rows of a table, the first column left-aligned, the others to the right (or left) edge of the widest."""
    widths = [max(len(clean(cell)) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *rest = (clean(cell) for cell in row)
        cells = [cell.rjust(w) if right else cell.ljust(w) for cell, w in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return lines


def with_unit(name: str, units: Mapping[str, str]) -> str:
    """``x [m]``; the name alone where no unit is stated."""
    return f"{name} [{units[name]}]" if units.get(name) else name


def quoted(name: str) -> str:
    """A file name as a shell takes it."""
    return shlex.quote(name)


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _bold(text: str, stream: TextIO) -> str:
    """Red and bold on a terminal, unless NO_COLOR (no-color.org) is set."""
    return f"\x1b[1;31m{text}\x1b[0m" if _is_terminal(stream) and not os.environ.get("NO_COLOR") else text
