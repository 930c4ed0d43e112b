"""δ-SNet from the set-up: what is held out, the prior on the weights, and its limits."""

from __future__ import annotations

import math

from snet_cli.training.delta import Delta
from snet_cli.training.options import PAPER_ITERATIONS, FitOptions
from snet_cli.training.problem import Problem
from snet_cli.workflows.build_alpha import is_exact
from snet_cli.workflows.held_out import HeldOut
from snet_cli.workflows.training_plan import (
    Ingredients,
    MethodEntry,
    Training,
    iteration_limit,
    relaxed_rule,
    validation_of,
)
from snet_cli.workflows.training_setup import STREAM_HELD_OUT, Setup, stream

DEFAULT_ITERATIONS = {"lbfgs": 1500, "adam": 2000, "lm": 100}
"""Limits outside the preset: L-BFGS and Levenberg-Marquardt have gained what a forecast can show by then (README,
"What it reaches")."""

HELD_OUT_SHARE = 0.1
"""Share of the elements whose residual only decides when to stop, where there is no validation data."""

FEWEST_ELEMENTS_TO_SHARE = 20

PATIENCE = 100
"""Iterations without a better held-out score after which training has converged."""


def _iterations(options: FitOptions) -> int:
    return PAPER_ITERATIONS["delta"] if options.preset == "paper" else DEFAULT_ITERATIONS[options.theta_step.name]


def _build(parts: Ingredients) -> Training:
    """δ-SNet: L-BFGS stops on held-out elements where there is no validation data."""
    options, setup = parts.options, parts.setup
    rule = relaxed_rule(parts, setup.problem)
    validation = validation_of(parts, rule)
    problem, held_out, patience = _held_out(parts, validation)
    prior = prior_strength(setup) if options.prior == "auto" else options.prior
    robust = (
        own_steps(options)
        and options.theta_step.name == "lbfgs"
        and options.tolerance == 0
        and is_exact(setup.step_zero, parts.data.train)
    )
    method = Delta(
        problem,
        setup.trained.model,
        options.theta_step,
        setup.step_zero.misfit,
        held_out,
        prior,
        robust,
        by_median=robust and validation is None,  # a validation file is scored as `evaluate --relaxed` does
        team=parts.team,
    )
    return Training(
        method,
        rule,
        iteration_limit(options, DELTA),
        patience,
        stalls=options.theta_step.name != "adam",
        closed_form=method.theta is None,
        validation=validation,
        team=parts.team,
    )


DELTA = MethodEntry(_build, _iterations, needs_all_states=True)


def prior_strength(setup: Setup) -> float:
    """λ of λ|θ|²: the residual that the samples' noise leaves even with the true f, per scalar equation.

    R is then σ² times a chi-square of that many degrees of freedom over their number, and R + λ|θ|² the log of the
    posterior under weights of standard deviation one (MacKay 1992). Noise-free data gives next to no prior.
    """
    return prior_of(setup, setup.step_zero.mesh.elements)


def prior_of(setup: Setup, elements: int) -> float:
    """The same for so many elements in all."""
    zero = setup.step_zero
    scale = setup.problem.scale.cpu().numpy()
    equations = elements * zero.mesh.basis.order * scale.size
    return float((scale**2 * zero.rate_variance).sum() / equations)


def own_steps(options: FitOptions) -> bool:
    """Whether this program decides how to descend, not the paper."""
    return options.theta_step.name != "adam" and options.preset is None


def _held_out(parts: Ingredients, validation: HeldOut | None) -> tuple[Problem, Problem | None, float]:
    """The problem to train on, the one that chooses the best θ, and the patience that goes with it."""
    setup, options, team = parts.setup, parts.options, parts.team
    problem = parts.own_problem(setup.problem)
    if validation is not None:
        return problem, validation.part(team), math.inf
    if own_steps(options) and setup.step_zero.mesh.elements >= FEWEST_ELEMENTS_TO_SHARE:
        train, held = problem.split_elements(HELD_OUT_SHARE, stream(parts.common.seed, STREAM_HELD_OUT), team)
        return train, held, PATIENCE
    return problem, None, math.inf
