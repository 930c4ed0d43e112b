"""`--require 'mse<=0.02'`: bounds that a pipeline insists on.

A bound names a number of the JSON by its dotted path (``mse``, ``diverged``, ``channels.x.rmse``,
``by_horizon.19.rmse.x``), an operator and a value. It is parsed before any work is done. A null meets none.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from snet_cli.errors import RequirementError, UsageError
from snet_cli.evaluation.metrics import BINS

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}

TOTALS = (
    "mse", "mse_true", "rmse", "nrmse", "fit_percent", "diverged", "trajectories", "windows", "horizon", "seconds",
    "scored_values", "evaluations",
)  # fmt: skip
OUTCOME_KEYS = ("outcomes.ok", "outcomes.diverged", "outcomes.step-underflow", "outcomes.budget")
RELAXED_KEYS = ("relaxed.total", "relaxed.residual", "relaxed.misfit")
BAND_KEYS = ("bands.level", "bands.coverage", "bands.unbounded", "bands.failed", "bands.members")
CHANNEL_KEYS = ("mse", "rmse", "nrmse", "fit_percent", "max_abs")


class Requirement(NamedTuple):
    """One bound.

    Attributes
    ----------
    key : str
        Dotted path in the JSON.
    operator : str
    bound : float
    """

    key: str
    operator: str
    bound: float

    def __str__(self) -> str:
        return f"{self.key}{self.operator}{self.bound:.15g}"

    def met_by(self, value: float | None) -> bool:
        """Whether a number meets the bound; null meets none."""
        return value is not None and OPERATORS[self.operator](value, self.bound)


def score_keys(channels: Iterable[str]) -> list[str]:
    """All paths that a bound may name, for these channels."""
    names = list(channels)
    keys = [*TOTALS, *OUTCOME_KEYS, *RELAXED_KEYS, *BAND_KEYS]
    keys += [f"bands.channels.{name}.{key}" for name in names for key in ("mean_width", "coverage")]
    in_bin = ("t", "coverage", *(f"mean_width.{name}" for name in names))
    keys += [f"bands.by_horizon.{k}.{key}" for k in range(BINS) for key in in_bin]
    keys += [f"channels.{name}.{key}" for name in names for key in CHANNEL_KEYS]
    return keys + [f"by_horizon.{k}.{key}" for k in range(BINS) for key in ("t", *(f"rmse.{name}" for name in names))]


def parse_requirements(texts: Sequence[str], channels: Iterable[str]) -> tuple[Requirement, ...]:
    """Read bounds as they stand on the command line.

    Parameters
    ----------
    texts : sequence of str
    channels : iterable of str
        Output names of the model.

    Raises
    ------
    UsageError
        If one is not of the form KEY OPERATOR NUMBER, or no score has that key.
    """
    keys = score_keys(channels)
    return tuple(_parse(text, keys) for text in texts)


def _parse(text: str, keys: list[str]) -> Requirement:
    match = re.fullmatch(r"\s*(.*\S)\s*(<=|>=|==|(?<![<>=])[<>])\s*([^<>=\s]+)\s*", text)
    try:
        bound = float(match[3]) if match else math.nan
    except ValueError:
        bound = math.nan
    if match is None or math.isnan(bound):
        raise UsageError(
            f"--require '{text}' is no bound, expected KEY, one of {' '.join(OPERATORS)}, and a number.",
            "For example: --require 'mse<=0.02'",
        )
    key = match[1]
    if key not in keys:
        near = difflib.get_close_matches(key, keys, n=1, cutoff=0.0)
        raise UsageError(f"--require '{text}': no score is called '{key}'.", f"Did you mean '{near[0]}'?")
    return Requirement(key, match[2], bound)


def flatten(report: Mapping[str, Any]) -> dict[str, float | None]:
    """All numbers and nulls of a report's JSON by dotted path."""
    flat: dict[str, float | None] = {}

    def walk(path: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(f"{path}.{key}" if path else str(key), inner)
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                walk(f"{path}.{number}", inner)
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            flat[path] = value

    walk("", report)
    return flat


def check_requirements(requirements: Iterable[Requirement], report: Mapping[str, Any]) -> None:
    """Compare a report with its bounds.

    Parameters
    ----------
    requirements : iterable of Requirement
    report : mapping
        `EvaluationReport.to_json()`.

    Raises
    ------
    RequirementError
        Naming every bound that is not met, and the number in its place.
    """
    flat = flatten(report)
    missed = [each for each in requirements if not each.met_by(flat.get(each.key))]
    if missed:
        found = "; ".join(f"{each} (it is {_shown(flat.get(each.key))})" for each in missed)
        raise RequirementError(f"not met: {found}.", "The report itself is complete.")


def _shown(value: float | None) -> str:
    return "null: nothing was scored" if value is None else f"{value:.6g}"
