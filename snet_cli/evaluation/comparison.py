"""What `snet compare` says: one row per method and data set, as JSON, CSV and Markdown. Nothing is ranked.

Rows stand in the order in which they were asked for. A number that was not measured is null (JSON), empty (CSV) or a
dash (Markdown), never a guess. `final_loss` is each method's own; what compares methods is `train_mse` and `test_mse`.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from snet_cli.data.outputs import write_atomic

TABLE_FILES = ("table.csv", "table.md", "result.json")
"""What every comparison's folder holds, pictures aside."""


class GradientPoint(NamedTuple):
    """Norm of the gradient when trajectories end at this horizon; None where there is none."""

    horizon: float
    norm: float | None


@dataclass(frozen=True)
class ComparisonRow:
    """One method on one data set, or one checkpoint.

    Attributes
    ----------
    method : str
        Registry name; ``linear`` and ``hold`` are the yardsticks.
    case : str or None
        Tells data sets apart (``"50%"``) or checkpoints (their file stem).
    status : str
        As `fit` reports it, or ``"failed"``.
    message : str or None
        Why a method failed or has no number.
    ms_per_iteration : float or None
        The training loop alone.
    iterations : int or None
    seconds : float or None
        Set-up, training and final rollout.
    seconds_setup : float or None
    final_loss : float or None
        The method's own.
    train_mse, test_mse : float or None
        Rollouts; null where all diverged.
    diverged : int or None
        Test forecasts that did not reach their end.
    peak_memory_mb : float or None
        10^6 bytes, of a process of its own.
    gradient_norm : tuple of GradientPoint
    """

    method: str
    case: str | None = None
    status: str = "converged"
    message: str | None = None
    ms_per_iteration: float | None = None
    iterations: int | None = None
    seconds: float | None = None
    seconds_setup: float | None = None
    final_loss: float | None = None
    train_mse: float | None = None
    test_mse: float | None = None
    diverged: int | None = None
    peak_memory_mb: float | None = None
    gradient_norm: tuple[GradientPoint, ...] = ()

    @property
    def label(self) -> str:
        """Method and case, for legends: ``alpha 50%``."""
        return self.method if self.case is None else f"{self.method} {self.case}"

    def to_json(self) -> dict[str, Any]:
        """Every key; null where a number is not finite or does not exist."""
        values: dict[str, Any] = {key: _plain(getattr(self, key)) for key in KEYS}
        values["gradient_norm"] = [{"horizon": h, "norm": _plain(norm)} for h, norm in self.gradient_norm]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ComparisonRow:
        """The row that `to_json` wrote, for a comparison that goes on where it was interrupted."""
        known = {key: values[key] for key in KEYS if key in values and key != "gradient_norm"}
        points = tuple(GradientPoint(point["horizon"], point["norm"]) for point in values.get("gradient_norm", ()))
        return cls(**known, gradient_norm=points)


KEYS = tuple(field.name for field in fields(ComparisonRow))
"""Keys of a row in JSON, and columns of `table.csv`."""


def failed_row(method: str, case: str | None, reason: str, **measured: Any) -> ComparisonRow:
    """The row of a method that could not go on: status ``failed`` and the reason; what was measured before stays.

    Parameters
    ----------
    reason : str
        ``"underflow in dt"``, or what an error said.
    measured : float or int
        Further attributes of the row.
    """
    return ComparisonRow(method, case, "failed", f"failed: {reason}", **measured)


@dataclass(frozen=True)
class Comparison:
    """All rows, and where they were written.

    Attributes
    ----------
    rows : tuple of ComparisonRow
    output : str or None
        The folder.
    preset : str or None
        The experiment that made the data.
    """

    rows: tuple[ComparisonRow, ...]
    output: str | None = None
    preset: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The object of DESIGN, section 4."""
        return {
            "command": "compare",
            "preset": self.preset,
            "rows": [row.to_json() for row in self.rows],
            "output": self.output,
        }


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table_rows(rows: Sequence[ComparisonRow]) -> list[tuple[str, ...]]:
    """The table for people, its header first; the column `case` only where a row has one."""
    columns = {
        "method": [row.method for row in rows],
        "case": [row.case or "" for row in rows],
        "ms/iteration": [_digits(row.ms_per_iteration, 3) for row in rows],
        "iterations": [_digits(row.iterations) for row in rows],
        "seconds": [_digits(row.seconds, 3) for row in rows],
        "of which set-up": [_digits(row.seconds_setup, 3) for row in rows],
        "final loss": [_digits(row.final_loss, 3) for row in rows],
        "train MSE": [_digits(row.train_mse, 3) for row in rows],
        "test MSE": [_digits(row.test_mse, 3) for row in rows],
        "diverged": [_digits(row.diverged) for row in rows],
        "peak MB": [_digits(row.peak_memory_mb, 4) for row in rows],
        "status": [row.status for row in rows],
    }
    if all(row.case is None for row in rows):
        del columns["case"]
    return [tuple(columns), *zip(*columns.values(), strict=True)]


def _digits(value: float | None, digits: int = 12) -> str:
    """A number of so many digits; a dash where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def table_markdown(rows: Sequence[ComparisonRow]) -> str:
    """`table.md`: the table, and below it what rows have to say."""
    header, *body = table_rows(rows)
    text = ("method", "case", "status")
    lines = [
        "| " + " | ".join(header) + " |",
        "|" + "|".join("---" if name in text else "---:" for name in header) + "|",
        *("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in body),
    ]
    messages = [f"- {_cell(row.label)}: {_cell(row.message)}" for row in rows if row.message]
    return "\n".join([*lines, *(["", *messages] if messages else [])]) + "\n"


def _cell(text: str) -> str:
    """Text that cannot break a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def table_csv(rows: Sequence[ComparisonRow]) -> str:
    """`table.csv`: every key of a row, numbers with all their digits; gradient norms as a JSON list in one cell."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(KEYS)
    for row in rows:
        values = row.to_json()
        values["gradient_norm"] = json.dumps(values["gradient_norm"]) if values["gradient_norm"] else None
        writer.writerow(["" if values[key] is None else values[key] for key in KEYS])
    return text.getvalue()


def write_tables(folder: str | Path, comparison: Comparison, force: bool = False) -> list[Path]:
    """Write `TABLE_FILES`; returns their paths.

    Raises
    ------
    OutputError
        If one cannot be written, or exists and `force` is false.
    """
    result = json.dumps(comparison.to_json(), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    texts = (table_csv(comparison.rows), table_markdown(comparison.rows), result)
    paths = [Path(folder) / name for name in TABLE_FILES]
    for path, text in zip(paths, texts, strict=True):
        write_atomic(path, text.encode(), force)
    return paths
