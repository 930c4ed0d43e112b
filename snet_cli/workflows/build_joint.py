"""Joint Gauss-Newton from the set-up: its mesh, the prior on the weights, and its memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from snet_cli.training.arrow import DEFAULT_MEMORY
from snet_cli.training.evidence import Evidence
from snet_cli.training.gamma import SampleCounts, noise_misfit
from snet_cli.training.joint import Joint
from snet_cli.training.levels import Levels
from snet_cli.training.options import FitOptions
from snet_cli.training.relaxed_data import channel_scale, known_noise, known_start_mask, relax
from snet_cli.training.robust import as_tensor
from snet_cli.training.starts import free_states
from snet_cli.training.warm_up import FINE, ROUGH_IF_EXACT, ROUGH_IF_HURRIED
from snet_cli.workflows.build_alpha import is_exact, refined
from snet_cli.workflows.remesh import DataRemesher
from snet_cli.workflows.training_forecast import WindowForecast
from snet_cli.workflows.training_plan import (
    Ingredients,
    MethodEntry,
    Training,
    iteration_limit,
    problem_of,
    relaxed_rule,
    validation_of,
)

FloatArray = NDArray[np.float64]

JOINT_ITERATIONS = 200
"""Iterations beside a long warm-up: eight levels of γ take two to eight each, each refinement twenty more."""

UNKNOWNS_PER_SAMPLE = 2.0
"""Unknowns per state and sample time that refinement may reach: under the exact constraint X has no freedom of its own,
and a kink between two samples needs elements that are smaller than their distance."""

SCORE_GAMMA = 1e-4
"""γ of the held-out score: so small that X has to obey the model, as in a rollout from the best initial state. At γ
of order 1 the score prefers models of the first levels, whose X only has to be near the model's trajectories."""

ROUGH, HURRIED = "rough", 30.0
"""Key of `Training.settled`: iterations of the rough warm-up; and seconds of `--max-time` below which there are few."""

MEMORY_SHARE = 0.5
"""Share of `--max-memory` for the arrays of the normal equations; the rest holds the data, the graph and torch."""


def _iterations(options: FitOptions) -> int:
    return JOINT_ITERATIONS


def _build(parts: Ingredients) -> Training:
    """Levenberg-Marquardt on X and θ; γ falls to the exact constraint unless it is given."""
    options, setup, data = parts.options, parts.setup, parts.data
    free = options.x0 == "free"
    exact = is_exact(setup.step_zero, data.train)
    # a guess of a hidden state is never exact, and what it was guessed with would look right
    known_exactly = exact and not free_states(setup.layout) and not setup.layout.lags
    zero = parts.team.once(lambda team: refined(parts, exact))
    problem = parts.team.once(lambda team: problem_of(parts, data.train, zero))
    noise = noise_levels(parts, exact)
    channels = channel_scale(data.train.outputs, noise, scaled=options.scaled)
    known = None if free else known_start_mask(data.train, setup.layout.states)[0]
    relaxed = parts.team.once(lambda team: relax(problem, data.train, channels, known_start=known))
    rule = relaxed_rule(parts, problem, SCORE_GAMMA if options.gamma == "auto" else options.gamma, free=free)
    validation = validation_of(parts, rule)
    automatic = options.order == options.elements == "auto"
    counts = SampleCounts.of(relaxed)
    levels = None
    if options.gamma == "auto" and noise is not None:
        levels = Levels(WindowForecast(parts), noise_misfit(counts, noise))
    rough = rough_iterations(parts)
    method = Joint(
        parts.own_problem(problem),
        parts.own_relaxed(relaxed),
        setup.trained.model,
        gamma=None if options.gamma == "auto" else options.gamma,
        prior=0.0 if options.prior == "auto" else options.prior,
        evidence=evidence_of(options, counts, noise),
        held_out=None if validation is None else validation.scorer(parts.team),
        threshold=None if zero.threshold is None else as_tensor(zero.threshold, parts.device),
        exact=known_exactly,
        rough=rough,
        levels=levels,
        remesher=DataRemesher(parts, channels, rule, UNKNOWNS_PER_SAMPLE) if automatic else None,
        memory=joint_memory(parts.common.max_memory),
        team=parts.team,
    )
    longer = known_exactly and options.iterations is None
    limit = iteration_limit(options, JOINT) + (rough + FINE if longer else 0)
    settled = {ROUGH: rough}
    return Training(method, rule, limit, mesh=zero.mesh, validation=validation, settled=settled, team=parts.team)


def rough_iterations(parts: Ingredients) -> int:
    """Of the warm-up on exact data: few where the user gives little time; a resumed run keeps what it began with."""
    if ROUGH in parts.settled:
        return int(parts.settled[ROUGH])
    options = parts.options
    short = options.max_time is not None and options.max_time < HURRIED
    few = options.iterations is not None and options.iterations < ROUGH_IF_EXACT + FINE
    return ROUGH_IF_HURRIED if short or few else ROUGH_IF_EXACT


def joint_memory(most: float | None) -> int:
    """Bytes for the normal equations under `--max-memory`."""
    return DEFAULT_MEMORY if most is None else int(MEMORY_SHARE * most)


JOINT = MethodEntry(_build, _iterations)


def noise_levels(parts: Ingredients, exact: bool) -> FloatArray | None:
    """Noise levels (d,): the file's, else step 0's held-out error, which is none where step 0 is exact.

    The misfit weighs each channel by its noise, so that its minimum under the constraint is that of the likelihood.
    """
    zero = parts.setup.step_zero
    stated = known_noise(parts.data.train.noise_std, parts.setup.layout.outputs)
    if stated is not None or exact or not (np.isfinite(zero.noise) & (zero.noise > 0)).all():
        return stated
    return zero.noise


def evidence_of(options: FitOptions, counts: SampleCounts, noise: FloatArray | None) -> Evidence | None:
    """What chooses ν of γ Σ ν θ²; none where ν is given, and where no noise is known."""
    if options.prior != "auto" or noise is None:
        return None
    unit = float((counts.values * noise**2 * counts.channel).sum()) / max(int(counts.values.sum()), 1)
    return Evidence(unit) if unit > 0 else None
