"""Joint Gauss-Newton from the set-up: its mesh, the prior on the weights, and its memory."""

from __future__ import annotations

import numpy as np

from snet_cli.training.arrow import DEFAULT_MEMORY
from snet_cli.training.gamma import noise_misfit
from snet_cli.training.joint import Joint
from snet_cli.training.options import FitOptions
from snet_cli.training.relaxed import RelaxedProblem, channel_scale, known_noise, known_start_mask, relax
from snet_cli.training.relaxed_score import REFERENCE_GAMMA
from snet_cli.training.robust import as_tensor
from snet_cli.workflows.build_alpha import is_exact, refined
from snet_cli.workflows.training_plan import (
    Ingredients,
    MethodEntry,
    Training,
    iteration_limit,
    problem_of,
    relaxed_rule,
    validation_of,
)

JOINT_ITERATIONS = 100
"""Iterations, the warm-up's ten among them: seven or eight levels of γ take two to eight each, the last one more."""

MEMORY_SHARE = 0.5
"""Share of `--max-memory` for the arrays of the normal equations; the rest holds the data, the graph and torch."""


def _iterations(options: FitOptions) -> int:
    return JOINT_ITERATIONS


def _build(parts: Ingredients) -> Training:
    """Levenberg-Marquardt on X and θ; γ falls to the exact constraint unless it is given."""
    options, setup, data = parts.options, parts.setup, parts.data
    free = options.x0 == "free"
    zero = refined(parts, is_exact(setup.step_zero, data.train))
    problem = problem_of(parts, data.train, zero)
    channels = channel_scale(
        data.train.outputs, known_noise(data.train.noise_std, setup.layout.outputs), scaled=options.scaled
    )
    known = None if free else known_start_mask(data.train, setup.layout.states)[0]
    relaxed = relax(problem, data.train, channels, known_start=known)
    rule = relaxed_rule(parts, problem, REFERENCE_GAMMA if options.gamma == "auto" else options.gamma, free=free)
    validation = validation_of(parts, rule)
    memory = parts.common.max_memory
    method = Joint(
        problem,
        relaxed,
        setup.trained.model,
        gamma=None if options.gamma == "auto" else options.gamma,
        prior=_prior(parts, relaxed) if options.prior == "auto" else options.prior,
        held_out=None if validation is None else validation.scorer(),
        threshold=None if zero.threshold is None else as_tensor(zero.threshold, parts.device),
        memory=DEFAULT_MEMORY if memory is None else int(MEMORY_SHARE * memory),
    )
    return Training(method, rule, iteration_limit(options, JOINT), mesh=zero.mesh, validation=validation)


JOINT = MethodEntry(_build, _iterations)


def _prior(parts: Ingredients, relaxed: RelaxedProblem) -> float:
    """ν of γν|θ|²: what the noise of one value leaves in L, so that L + ν|θ|² is the log posterior of unit weights.

    The noise is the file's, else step 0's held-out error; without either there is no prior.
    """
    zero, outputs = parts.setup.step_zero, parts.setup.layout.outputs
    stated = known_noise(parts.data.train.noise_std, outputs)
    noise = zero.noise if stated is None else stated
    if not np.isfinite(noise).all():
        return 0.0
    values = max(int((relaxed.observed.weight > 0).sum()), 1)
    return noise_misfit(relaxed, noise) / values
