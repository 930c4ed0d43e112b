"""What a comparison leaves in DIR/runs/<label>: job, row, learning curve and models; and how `--resume` finds it."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from snet_cli.data.outputs import write_atomic
from snet_cli.evaluation.comparison import ComparisonRow
from snet_cli.evaluation.comparison_plots import LearningCurve
from snet_cli.workflows.compare_plan import RUNS, Job

JOB, ROW, CURVE, MODEL = "job.json", "row.json", "curve.csv", "model.h5"

CURVE_COLUMNS = ("iteration", "seconds", "loss", "train_mse", "train_diverged")


class CurvePoint(NamedTuple):
    """One iteration; the rollout is None where it was not tracked."""

    iteration: int
    seconds: float
    loss: float
    train_mse: float | None = None
    train_diverged: int | None = None


class Finished(NamedTuple):
    """A row that is done; `exit_code` of the error that it failed with, and what that error said."""

    row: ComparisonRow
    exit_code: int | None = None
    hint: str = ""


def folder_of(output: str | Path, job: Job) -> Path:
    """DIR/runs/<label>."""
    return Path(output) / RUNS / job.label


def write_json(path: Path, tree: dict[str, Any]) -> None:
    """Write JSON whole or not at all."""
    write_atomic(path, (json.dumps(tree, indent=1, allow_nan=False) + "\n").encode(), force=True)


def save_finished(folder: Path, fingerprint: str, finished: Finished) -> None:
    """Write the row; its file is the last one of a row, so that what is there is complete."""
    tree = {"fingerprint": fingerprint, "row": finished.row.to_json()}
    write_json(folder / ROW, {**tree, "exit_code": finished.exit_code, "hint": finished.hint})


def load_finished(folder: Path, fingerprint: str | None = None) -> Finished | None:
    """The row in this folder; None where there is none, or it was made from something else."""
    try:
        tree = json.loads((folder / ROW).read_text("utf-8"))
        if fingerprint is not None and tree["fingerprint"] != fingerprint:
            return None
        return Finished(ComparisonRow.from_json(tree["row"]), tree["exit_code"], tree["hint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_curve(folder: Path, points: Sequence[CurvePoint]) -> None:
    """Write the learning curve as CSV; what was not tracked is empty."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CURVE_COLUMNS)
    writer.writerows(["" if value is None else value for value in point] for point in points)
    write_atomic(folder / CURVE, text.getvalue().encode(), force=True)


def load_curve(folder: Path, row: ComparisonRow) -> LearningCurve | None:
    """The learning curve of a row; the rollout MSE only where every trajectory reached its end."""
    try:
        lines = list(csv.DictReader(io.StringIO((folder / CURVE).read_text("utf-8"))))
        points = [(float(one["iteration"]), float(one["seconds"]), float(one["loss"]), _score(one)) for one in lines]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    values = np.array(points, dtype=np.float64).reshape(-1, 4)
    tracked = np.isfinite(values[:, 3])
    return LearningCurve(
        row.method, row.case, values[:, 2], values[:, 1], values[tracked, 0], values[tracked, 1], values[tracked, 3]
    )


def _score(line: dict[str, str]) -> float:
    return float(line["train_mse"]) if line["train_mse"] and line["train_diverged"] == "0" else math.nan
