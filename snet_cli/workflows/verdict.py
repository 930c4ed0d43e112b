"""Whether a forecast is good enough: the bounds of `--require`, and whether anything could be forecast at all."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from snet_cli.errors import NumericalError, RequirementError, SnetError, UsageError

COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}

FORM = re.compile(r"\s*([^<>=\s][^<>=]*?)\s*(<=|>=|<|>)\s*([-+.\deE]+)\s*")


class Requirement(NamedTuple):
    """One bound: ``mse<=0.02``, ``channels.x.rmse<=0.1``."""

    text: str
    key: tuple[str, ...]
    compare: str
    bound: float


def parse_requirements(texts: Sequence[str]) -> list[Requirement]:
    """The bounds of `--require`, to be read before any work.

    Raises
    ------
    UsageError
        If a text is no bound.
    """
    found = []
    for text in texts:
        match = FORM.fullmatch(text)
        try:
            bound = float(match.group(3)) if match else float("nan")
        except ValueError:
            match = None
        if match is None:
            raise UsageError(f"--require '{text}' is no bound.", "Write for example --require 'mse<=0.02'")
        found.append(Requirement(text, tuple(match.group(1).split(".")), match.group(2), bound))
    return found


def verdict(result: Mapping[str, Any], requirements: Sequence[Requirement] = ()) -> SnetError | None:
    """What a result fails with although it exists: a bound that is not met, or nothing but divergence.

    A score that is null meets no bound.

    Raises
    ------
    UsageError
        If a requirement names no number of the result.
    """
    for requirement in requirements:
        value = _looked_up(result, requirement)
        if value is None or not COMPARE[requirement.compare](value, requirement.bound):
            got = "null" if value is None else f"{value:.6g}"
            name = ".".join(requirement.key)
            return RequirementError(
                f"{name} is {got}, required is {name}{requirement.compare}{requirement.bound:g}.",
                "The forecast is as printed; nothing else is wrong.",
            )
    diverged = result.get("diverged") or 0
    if diverged and diverged >= result.get("forecasts", result.get("trajectories", 0)):
        return NumericalError(
            f"every forecast diverged ({diverged} of {diverged}).",
            "Look at the training forecast, train longer, or choose a shorter --horizon.",
        )
    return None


def _looked_up(result: Mapping[str, Any], requirement: Requirement) -> float | None:
    value: Any = result
    for depth, key in enumerate(requirement.key):
        if value is None and depth:
            return None
        if not isinstance(value, Mapping) or key not in value:
            known = [name for name, item in result.items() if isinstance(item, int | float) or item is None]
            raise UsageError(
                f"--require '{requirement.text}': the result has no number '{'.'.join(requirement.key)}'.",
                f"It has {', '.join(known)}, and channels.NAME.rmse.",
            )
        value = value[key]
    if value is not None and not isinstance(value, int | float):
        raise UsageError(
            f"--require '{requirement.text}': '{'.'.join(requirement.key)}' is no number.",
            "Write for example --require 'mse<=0.02'",
        )
    return value
