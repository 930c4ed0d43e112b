"""Smaller sizes of an experiment: fewer trajectories, agents and iterations of the same thing.

Three sizes: `full` as in the paper, `quick` in under two minutes, `tiny` for tests.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from snet_cli.errors import UsageError
from snet_cli.workflows.experiments import EXPERIMENTS, Case, DataSet, Experiment, Run

Size = Literal["full", "quick", "tiny"]


class Shrinkage(NamedTuple):
    """What a smaller size leaves of an experiment.

    Attributes
    ----------
    trajectories : int
        Of training and test sets.
    agents : int
    train_horizon, test_horizon : float
        Training samples stay as many as they are, so that sparse stays sparse and step 0 is the same problem.
    test_samples : int
    iterations : mapping of str to int
        By method; ``""`` for any other.
    evaluations : int
        Of f in one solution, after which a solver has failed.
    """

    trajectories: int
    agents: int
    train_horizon: float
    test_horizon: float
    test_samples: int
    iterations: Mapping[str, int]
    evaluations: int


SHRINKAGE: Mapping[Size, Shrinkage] = MappingProxyType(
    {
        "quick": Shrinkage(
            10,
            4,
            10.0,
            30.0,
            300,
            {"delta": 480, "alpha": 30, "bkpr-euler": 30, "adj-euler": 15, "bkpr-dopri5": 4, "adj-dopri5": 2, "": 10},
            5_000,
        ),
        "tiny": Shrinkage(2, 2, 1.0, 2.0, 20, {"": 3}, 300),
    }
)
"""Sizes other than `full`."""


def experiment(name: str, size: Size = "full") -> Experiment:
    """The preset of this name, in this size.

    Raises
    ------
    UsageError
        With the nearest name, if there is none.
    """
    if name not in EXPERIMENTS:
        near = difflib.get_close_matches(name, EXPERIMENTS, 1)
        hint = f"Did you mean '{near[0]}'?" if near else f"There are paper, {', '.join(EXPERIMENTS)}."
        raise UsageError(f"there is no preset '{name}'.", hint)
    whole = EXPERIMENTS[name]
    if size == "full":
        return whole
    less = SHRINKAGE[size]
    return replace(whole, cases=tuple(_shrink(case, less) for case in whole.cases), published=())


def _shrink(case: Case, less: Shrinkage) -> Case:
    runs = tuple(
        replace(
            run,
            iterations=min(run.iterations, less.iterations.get(run.method, less.iterations[""])),
            fit=_few_evaluations(run, less.evaluations),
        )
        for run in case.runs
    )
    return replace(case, train=_shrink_train(case.train, less), test=_shrink_test(case.test, less), runs=runs)


def _few_evaluations(run: Run, most: int) -> Mapping[str, Any]:
    """`fit` options of a run; those of a solver with its limit."""
    solver = {"solver": {"max_evaluations": most}} if run.method.endswith("dopri5") else {}
    return MappingProxyType({**run.fit, **solver})


def _shrink_train(data: DataSet, less: Shrinkage) -> DataSet:
    return _few_agents(data, less, {"trajectories": less.trajectories, "horizon": less.train_horizon})


def _shrink_test(data: DataSet, less: Shrinkage) -> DataSet:
    changes = {"trajectories": less.trajectories, "horizon": less.test_horizon, "samples": less.test_samples}
    return _few_agents(data, less, changes)


def _few_agents(data: DataSet, less: Shrinkage, changes: Mapping[str, Any]) -> DataSet:
    parameters = dict(data.parameters)
    if data.system.startswith("multi-agent"):
        parameters["agents"] = less.agents
    return replace(data, options=data.options.model_copy(update=dict(changes)), parameters=MappingProxyType(parameters))
