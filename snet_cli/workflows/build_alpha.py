"""α-SNet from the set-up: its mesh, γ, and what scores it on held-out trajectories."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from snet_cli.data.trajectories import Trajectories
from snet_cli.spectral.fitting import channel_scales
from snet_cli.training.alpha import Alpha
from snet_cli.training.alpha_mesh import refine_for_alpha
from snet_cli.training.alpha_options import ALPHA_PAPER_ITERATIONS, AlphaOptions
from snet_cli.training.gamma import NoiseLevelGamma, estimated_noise
from snet_cli.training.gamma_search import plan_gamma, search_gamma
from snet_cli.training.loop import HELD_OUT_EVERY
from snet_cli.training.method_choice import EXACT, samples_per_unknown
from snet_cli.training.options import FitOptions
from snet_cli.training.relaxed import channel_scale, known_noise, known_start_mask, relax
from snet_cli.training.relaxed_score import REFERENCE_GAMMA
from snet_cli.training.robust import as_tensor
from snet_cli.training.step_zero import StepZero
from snet_cli.workflows.held_out import HeldOut
from snet_cli.workflows.training_plan import (
    Ingredients,
    MethodEntry,
    Training,
    iteration_limit,
    look_every,
    problem_of,
    relaxed_rule,
    validation_of,
)
from snet_cli.workflows.training_setup import STREAM_PERTURBATION, fit_step_zero, stream

ALPHA_ITERATIONS = 200
"""Iterations of α-SNet outside the preset: its loss has settled by then."""


SCORE_COST = 2.0
"""Iterations that scoring as many elements as are trained on takes at most; on the vehicle 1.1 (one or two x-steps)."""


def _iterations(options: FitOptions) -> int:
    return ALPHA_PAPER_ITERATIONS if options.preset == "paper" else ALPHA_ITERATIONS


def _build(parts: Ingredients) -> Training:
    """α-SNet: the samples' noise sets γ, and the mesh is as fine as R can hold it."""
    options, setup, data = parts.options, parts.setup, parts.data
    paper = options.preset == "paper"
    free = options.x0 == "free" or (options.x0 is None and paper)  # Alg. 2 prints x(t0) free
    exact = is_exact(setup.step_zero, data.train)
    zero = refined(parts, exact)
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
    gamma = REFERENCE_GAMMA if isinstance(plan.gamma, NoiseLevelGamma) else plan.gamma
    rule = relaxed_rule(parts, problem, gamma, free=free)
    validation = validation_of(parts, rule)
    method = Alpha(
        problem,
        relaxed,
        model,
        alpha_options,
        options.theta_step,
        gamma=plan.gamma,
        held_out=None if validation is None else validation.scorer(),
        threshold=None if zero.threshold is None else as_tensor(zero.threshold, parts.device),
        seed=seed,
    )
    return Training(
        method,
        rule,
        iteration_limit(options, ALPHA),
        mesh=zero.mesh,
        notes=(plan.reason,),
        validation=validation,
        look_every=HELD_OUT_EVERY if validation is None else look_every(_cost_of_score(validation, zero)),
    )


ALPHA = MethodEntry(_build, _iterations)


def _cost_of_score(validation: HeldOut, zero: StepZero) -> float:
    """Iterations that a score costs."""
    return SCORE_COST * validation.problem.mesh.elements / zero.mesh.elements


def is_exact(zero: StepZero, data: Trajectories) -> bool:
    """Whether step 0 predicts held-out samples as well as the truth would."""
    limit = EXACT * channel_scales(data.outputs)[1]
    return bool(np.isfinite(zero.noise).all() and (zero.noise < limit).all())


def refined(parts: Ingredients, exact: bool) -> StepZero:
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
