"""Hidden states: short α-SNet trainings from several starts, and γ, chosen by the training rollout (`training.starts`).

The rollout starts as DESIGN says every choice does: with an init window the model's own trajectory is fitted to the
first samples, which are not scored; else a measured state starts at its first value and a hidden one at the mean start
estimated in training.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from snet_cli.forecasting.rollout import rollout
from snet_cli.models.base import Model
from snet_cli.spectral.mesh import Mesh
from snet_cli.training.alpha import Alpha
from snet_cli.training.node_inputs import inputs_at_nodes
from snet_cli.training.problem import Problem
from snet_cli.training.starts import Choice, Tried, choose_start, hidden_starts
from snet_cli.training.step_zero import StepZero
from snet_cli.workflows.trained_model import with_estimated_states
from snet_cli.workflows.training_plan import Ingredients, problem_of

HIDDEN_PRIOR = 1e-4
"""λ of λ|θ|² for models with hidden states unless the user gives another. On one recording, the cascaded tanks, the
training rollout is better without a prior, the forecast of other data worse."""

GAMMAS = (10.0, 3.0, 1.0)
"""γ of the first trainings, and those tried after it, each from where the last one ended. On the recorded tanks all
three forecast the training data about equally well; values outside them were not tried with these starts."""

ITERATIONS = 30
"""Iterations of each short training, beside the warm-up of the first; not fewer where the method is to take fewer, so
that a run that is extended has begun as the longer one would have."""

ROLLOUT_RTOL, ROLLOUT_ATOL = 1e-3, 1e-5
"""Tolerances of a rollout that only ranks starts."""

TIME_SHARE = 0.5
"""Share of `--max-time` after which no further start is tried."""


class Begun(NamedTuple):
    """A short training that the method goes on from.

    Attributes
    ----------
    problem : Problem
        With the scales and the normalisation of this start.
    model : Model
        A copy that holds its θ.
    state : dict
        `Alpha.state` at its end; empty where a resumed run brings its own.
    gamma : float
    name : str
        Of the start.
    """

    problem: Problem
    model: Model
    state: dict[str, Tensor]
    gamma: float
    name: str

    @property
    def settled(self) -> dict[str, Any]:
        """What a resumed run begins with instead of trying all starts again (`Training.settled`)."""
        return {"hidden_start": self.name, "hidden_gamma": self.gamma}


def begin_with_hidden_states(
    parts: Ingredients, zero: StepZero, make: Callable[[Problem, Model, float], Alpha]
) -> tuple[Begun, str]:
    """The start and the γ whose training rollout is best, and one sentence that tells them.

    Parameters
    ----------
    zero : StepZero
        On the mesh of the training.
    make : callable
        The method on a problem with a model and a γ.
    """
    stop = _clock(parts)
    asked = parts.options.gamma
    gammas = GAMMAS if asked == "auto" else (float(asked),)

    def error(begun: Begun) -> float:
        return rollout_error(parts, begun.model, begun.state["states.nodes"], zero.mesh)

    def from_start(name: str) -> Begun:
        begun = _at_start(parts, name, problems[name], gammas[0])
        method = make(begun.problem, begun.model, begun.gamma)
        _run(method, method.options.warm_up + ITERATIONS)
        return begun._replace(state=method.state())

    problems = starting_problems(parts, zero)
    if "hidden_start" in parts.settled:
        name, gamma = parts.settled["hidden_start"], parts.settled["hidden_gamma"]
        return _at_start(parts, name, problems[name], gamma), f"hidden states started from {name}, gamma {gamma:g}."
    first = choose_start([(name, partial(from_start, name)) for name in problems], error, stop)

    path = [first.best]

    def at_smaller(gamma: float) -> Begun:
        path.append(_continued(path[-1], make, gamma))
        return path[-1]

    later = [(f"{gamma:g}", partial(at_smaller, gamma)) for gamma in gammas[1:]]
    if not later or stop():
        return first.best, _sentence(first, first.best.gamma)
    second = choose_start(later, error, stop)
    best = second.best if second.error < first.error else first.best
    return best, _sentence(first, best.gamma, second.tried)


def _at_start(parts: Ingredients, name: str, problem: Problem, gamma: float) -> Begun:
    """A start before any training: a copy of the model, its normalisation that of this guess."""
    model = copy.deepcopy(parts.setup.trained.model)
    model.fit_normalization(problem.node_data())
    return Begun(problem, model, {}, gamma, name)


def _continued(begun: Begun, make: Callable[[Problem, Model, float], Alpha], gamma: float) -> Begun:
    """A training that goes on with another γ; what it began with stays as it is."""
    method = make(begun.problem, copy.deepcopy(begun.model), gamma)
    method.restore(begun.state)
    method.gamma = gamma
    _run(method, ITERATIONS)
    return begun._replace(model=method.model, state=method.state(), gamma=gamma)


def starting_problems(parts: Ingredients, zero: StepZero) -> dict[str, Problem]:
    """The training problem with each guess of the hidden states, by the guess's name.

    Derivatives are those of step 0's own series, as coarse as the samples' noise asks for, not of the refined one.
    """
    setup, data = parts.setup, parts.data.train
    hidden = [setup.layout.states.index(name) for name in setup.layout.hidden]
    coarse = setup.step_zero
    times = zero.mesh.node_times()
    owner = np.repeat(zero.mesh.trajectory, times.shape[1])
    nodes = zero.nodes.copy()
    nodes[:, :, hidden] = coarse.mesh.evaluate(coarse.nodes, owner, times.ravel()).reshape(nodes.shape)[:, :, hidden]
    starts = hidden_starts(zero.mesh, nodes, setup.layout, inputs_at_nodes(zero.mesh, data.inputs))
    return {start.name: problem_of(parts, data, replace(zero, nodes=start.nodes)) for start in starts}


def rollout_error(parts: Ingredients, model: Model, nodes: Tensor, mesh: Mesh) -> float:
    """Root mean square error of the rollout over the training data; infinity where it does not reach its end.

    Parameters
    ----------
    nodes : Tensor, shape (N, P, n)
        X, which tells the mean start and the range of hidden states.
    """
    values = nodes.detach().cpu().numpy()
    trained = replace(parts.setup.trained, model=model)
    trained = with_estimated_states(trained, values, mesh.first_element[:-1])
    forecast = rollout(trained.forecast_model(parts.device), parts.data.train, rtol=ROLLOUT_RTOL, atol=ROLLOUT_ATOL)
    return math.inf if forecast.diverged or forecast.mse is None else math.sqrt(forecast.mse)


def _run(method: Alpha, iterations: int) -> None:
    for _ in range(iterations):
        if not math.isfinite(method.step().total):
            return


def _clock(parts: Ingredients) -> Callable[[], bool]:
    """Whether `--max-time` leaves no time for a further start."""
    limit = parts.options.max_time
    end = math.inf if limit is None else time.perf_counter() + TIME_SHARE * limit
    return lambda: parts.team.any(time.perf_counter() > end)[0]


def _sentence(first: Choice[Begun], gamma: float, later: tuple[Tried, ...] = ()) -> str:
    tried = ", ".join(f"{one.error:.3g} from {one.name}" for one in first.tried)
    if not math.isfinite(min(one.error for one in (*first.tried, *later))):
        return "hidden states: the training rollout of every start is unstable; the first one is kept."
    smaller = "".join(f", {one.error:.3g} at gamma {one.name}" for one in later)
    return (
        f"hidden states start from {first.name}, gamma {gamma:g}, by the root mean square error of the training "
        f"rollout ({tried}{smaller})."
    )
