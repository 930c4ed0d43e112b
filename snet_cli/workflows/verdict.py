"""Whether a forecast is good enough: the bounds of `--require`, and whether anything could be forecast at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from snet_cli.errors import NumericalError, RequirementError, SnetError
from snet_cli.evaluation.requirements import check_requirements, parse_requirements


def verdict(result: Mapping[str, Any], require: Sequence[str] = ()) -> SnetError | None:
    """What a result fails with although it exists: a bound that is not met, or nothing but divergence.

    Parameters
    ----------
    result : mapping
        The JSON of `evaluate`.
    require : sequence of str
        ``'mse<=0.02'``; a score that is null meets no bound.

    Returns
    -------
    SnetError or None
        To be raised once the result was printed.
    """
    try:
        check_requirements(parse_requirements(require, result["channels"]), result)
    except RequirementError as error:
        return error
    diverged, forecasts = result["diverged"], result.get("windows", result["trajectories"])
    if diverged and diverged == forecasts:
        return NumericalError(
            f"every forecast diverged ({diverged} of {forecasts}).",
            "Train longer, choose a shorter --horizon, or look at the training data with snet info.",
        )
    return None
