"""Training methods by name: each is built from the set-up, the data and the options, with the limits that suit it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from snet_cli.data.options import CommonOptions
from snet_cli.data.trajectories import Trajectories
from snet_cli.spectral.fitting import channel_scales
from snet_cli.spectral.mesh import Mesh
from snet_cli.training.alpha import Alpha
from snet_cli.training.alpha_mesh import refine_for_alpha
from snet_cli.training.alpha_options import AlphaOptions
from snet_cli.training.delta import Delta
from snet_cli.training.gamma import NoiseLevelGamma, estimated_noise
from snet_cli.training.gamma_search import plan_gamma, search_gamma
from snet_cli.training.method import Method
from snet_cli.training.method_choice import EXACT, samples_per_unknown
from snet_cli.training.options import PAPER_ITERATIONS, SHOOTING_ITERATIONS, FitOptions
from snet_cli.training.problem import Problem
from snet_cli.training.relaxed import channel_scale, known_noise, known_start_mask, nodes_of, relax
from snet_cli.training.relaxed_score import RelaxedScorer
from snet_cli.training.shooting_batches import ShootingBatch, batch_trajectories
from snet_cli.training.step_zero import StepZero
from snet_cli.workflows.fit_data import FitData
from snet_cli.workflows.training_setup import (
    STREAM_HELD_OUT,
    STREAM_PERTURBATION,
    Setup,
    build_problem,
    fit_step_zero,
    stream,
)

DEFAULT_ITERATIONS = {"lbfgs": 1500, "adam": 2000}
"""Limits outside the preset: L-BFGS has gained what a forecast can show by then (README, "What it reaches")."""

HELD_OUT_SHARE = 0.1
"""Share of the elements whose residual only decides when to stop, where there is no validation data."""

FEWEST_ELEMENTS_TO_SHARE = 20

ALPHA_ITERATIONS = 200
"""Iterations of α-SNet outside the preset: its loss has settled by then."""

PATIENCE = 100
"""Iterations without a better held-out score after which training has converged."""


@dataclass(frozen=True)
class Training:
    """A method that is ready to run, and the limits that suit it.

    Attributes
    ----------
    method : Method
    iterations : int
        Most iterations.
    patience : float
        Iterations without a better held-out score that end training.
    stalls : bool
        Whether a loss that no longer falls means convergence (deterministic line searches).
    closed_form : bool
        Whether one iteration solves the problem.
    mesh : Mesh or None
        The discretisation, where it is not step 0's.
    notes : tuple of str
        What was decided, and why.
    """

    method: Method
    iterations: int
    patience: float = math.inf
    stalls: bool = False
    closed_form: bool = False
    mesh: Mesh | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ingredients:
    """What every method is built from."""

    setup: Setup
    data: FitData
    options: FitOptions
    common: CommonOptions
    device: torch.device


Builder = Callable[[Ingredients], Training]


def iterations_of(options: FitOptions) -> int:
    """Most iterations: what the user says, else the limit that suits the method."""
    if options.iterations is not None:
        return options.iterations
    if options.method in SHOOTING_METHODS:
        return SHOOTING_ITERATIONS
    name = "delta" if options.method == "auto" else options.method
    if options.preset == "paper":
        return PAPER_ITERATIONS[name]
    return ALPHA_ITERATIONS if name == "alpha" else DEFAULT_ITERATIONS[options.theta_step.name]


def build_training(name: str, parts: Ingredients) -> Training:
    """The method of a registry name."""
    return METHODS[name](parts)


def _delta(parts: Ingredients) -> Training:
    """δ-SNet: L-BFGS stops on held-out elements where there is no validation data."""
    options, setup = parts.options, parts.setup
    problem, held_out, patience = _held_out(parts)
    prior = prior_strength(setup) if options.prior == "auto" else options.prior
    method = Delta(problem, setup.trained.model, options.theta_step, setup.step_zero.misfit, held_out, prior)
    return Training(method, iterations_of(options), patience, options.theta_step.name == "lbfgs", method.theta is None)


def prior_strength(setup: Setup) -> float:
    """λ of λ|θ|²: the residual that the samples' noise leaves even with the true f, per scalar equation.

    R is then σ² times a chi-square of that many degrees of freedom over their number, and R + λ|θ|² the log of the
    posterior under weights of standard deviation one (MacKay 1992). Noise-free data gives next to no prior.
    """
    zero = setup.step_zero
    scale = setup.problem.scale.cpu().numpy()
    equations = zero.mesh.elements * zero.mesh.basis.order * scale.size
    return float((scale**2 * zero.rate_variance).sum() / equations)


def _alpha(parts: Ingredients) -> Training:
    """α-SNet: the samples' noise sets γ, and the mesh is as fine as R can hold it."""
    options, setup, data = parts.options, parts.setup, parts.data
    paper = options.preset == "paper"
    free = options.x0 == "free" or (options.x0 is None and paper)  # Alg. 2 prints x(t0) free
    exact = _is_exact(setup.step_zero, data.train)
    zero = _refined(parts, exact)
    problem = problem_of(parts, data.train, zero)
    stated = known_noise(data.train.noise_std, setup.layout.outputs)
    channels = channel_scale(data.train.outputs, stated, scaled=options.scaled)
    known = None if free else known_start_mask(data.train, setup.layout.states)[0]
    relaxed = relax(problem, data.train, channels, known_start=known)
    alpha_options = AlphaOptions(
        state_step=options.state_step,
        theta_steps=options.theta_step.steps,
        perturbation=options.perturbation,
        warm_up=0 if paper else AlphaOptions().warm_up,
        own_descent=paper,
    )
    model, seed = setup.trained.model, stream(parts.common.seed, STREAM_PERTURBATION)
    plan = plan_gamma(
        options.gamma,
        relaxed,
        stated=stated,
        estimated=estimated_noise(
            setup.step_zero.noise,
            float(samples_per_unknown(setup.step_zero.mesh, data.train).min()),
            channel_scales(data.train.outputs)[1],
            setup.step_zero.condition,
        ),
        search=lambda: search_gamma(problem, relaxed, model, alpha_options, options.theta_step, seed=seed),
        exact=exact,
    )
    scorer = None
    if data.validation is not None and not isinstance(plan.gamma, NoiseLevelGamma):
        other = _validation_problem(parts)
        scorer = RelaxedScorer(relax(other, data.validation, channels), nodes_of(other))
    method = Alpha(
        problem, relaxed, model, alpha_options, options.theta_step, gamma=plan.gamma, held_out=scorer, seed=seed
    )
    return Training(method, iterations_of(options), mesh=zero.mesh, notes=(plan.reason,))


def _is_exact(zero: StepZero, data: Trajectories) -> bool:
    """Whether step 0 predicts held-out samples as well as the truth would."""
    limit = EXACT * channel_scales(data.outputs)[1]
    return bool(np.isfinite(zero.noise).all() and (zero.noise < limit).all())


def _refined(parts: Ingredients, exact: bool) -> StepZero:
    """Step 0 on a mesh as fine as the samples allow: R holds what they leave open, so every element counts."""
    options, setup, data = parts.options, parts.setup, parts.data.train
    zero, mesh = setup.step_zero, setup.step_zero.mesh
    if "auto" in (options.order, options.elements):
        order, elements = refine_for_alpha(
            mesh.basis.order, mesh.elements_of_longest, int(data.row_size.max()), exact=exact
        )
        chosen = {"order": order, "elements": elements}
        fixed = options.model_copy(update={k: v for k, v in chosen.items() if getattr(options, k) == "auto"})
        zero = fit_step_zero(fixed, parts.common, data, setup.choice, setup.layout)
    return replace(zero, counts=np.ones_like(zero.counts))


def _shooting(name: str) -> Builder:
    """A baseline that integrates while it trains, on the same model, data and loss."""

    def build(parts: Ingredients) -> Training:
        from snet_cli.training.shooting import Shooting, SolverTolerances  # torchdiffeq costs 0.3 s at import

        options, setup, data = parts.options, parts.setup, parts.data
        model = setup.trained.model

        def batches(part: Trajectories) -> tuple[ShootingBatch, ...]:
            return batch_trajectories(
                part,
                setup.layout,
                setup.trained.inputs,
                model.constants,
                scaled=options.scaled,
                known_start=options.x0 != "free",
                start=setup.trained.start,
                scale=channel_scales(data.train.outputs)[1] if options.scaled else None,
                device=parts.device,
            )

        limit = math.inf if parts.common.max_memory is None else parts.common.max_memory
        method = Shooting(
            name,
            model,
            batches(data.train),
            setup.layout.observation,
            rate=options.theta_step.rate,
            tolerances=SolverTolerances(max_memory=limit),
            held_out=() if data.validation is None else batches(data.validation),
        )
        return Training(method, iterations_of(options))

    return build


SHOOTING_METHODS = ("bkpr-euler", "bkpr-dopri5", "adj-euler", "adj-dopri5", "anode")

METHODS: dict[str, Builder] = {
    "auto": _delta,
    "delta": _delta,
    "alpha": _alpha,
    **{name: _shooting(name) for name in SHOOTING_METHODS},
}
"""Registry name -> builder."""


def problem_of(parts: Ingredients, data: Trajectories, zero: StepZero) -> Problem:
    """The problem on the nodes of this step 0."""
    setup = parts.setup
    return build_problem(
        parts.options, data, setup.layout, zero, setup.trained.model.constants, setup.trained.inputs, parts.device
    )


def _held_out(parts: Ingredients) -> tuple[Problem, Problem | None, float]:
    """The problem to train on, the one that chooses the best θ, and the patience that goes with it."""
    setup, options = parts.setup, parts.options
    if parts.data.validation is not None:
        return setup.problem, _validation_problem(parts), math.inf
    generic = options.theta_step.name == "lbfgs" and options.preset is None
    if generic and setup.step_zero.mesh.elements >= FEWEST_ELEMENTS_TO_SHARE:
        train, held = setup.problem.split_elements(HELD_OUT_SHARE, stream(parts.common.seed, STREAM_HELD_OUT))
        return train, held, PATIENCE
    return setup.problem, None, math.inf


def _validation_problem(parts: Ingredients) -> Problem:
    """The validation data on elements of the length that training uses, measured in training's scales."""
    setup, data = parts.setup, parts.data.validation
    assert data is not None
    mesh = setup.step_zero.mesh
    elements = max(1, round(float((data.end - data.start).max()) / float(mesh.width.mean())))
    fixed = parts.options.model_copy(update={"order": mesh.basis.order, "elements": elements})
    zero = fit_step_zero(fixed, parts.common, data, setup.choice, setup.layout)
    return problem_of(parts, data, zero).with_scale_of(setup.problem)
