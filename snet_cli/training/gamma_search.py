"""Which rule sets γ: a number, the noise level that the file states or dense data shows, else held-out samples."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from snet_cli.distributed import ALONE, Team
from snet_cli.models.base import Model
from snet_cli.training.alpha import Alpha
from snet_cli.training.alpha_options import AlphaOptions, Gamma
from snet_cli.training.gamma import (
    CANDIDATES,
    GammaChoice,
    NoiseLevelGamma,
    SampleCounts,
    choose_by_held_out,
    mean_square_noise,
    misfit_deviation,
    noise_misfit,
    sample_error,
    split_samples,
)
from snet_cli.training.options import ThetaStepOptions
from snet_cli.training.problem import Problem
from snet_cli.training.relaxed import RelaxedProblem
from snet_cli.training.state_step import DEFAULT_MEMORY

HELD_OUT_SHARE = 0.1
"""Share of the sample times that judge a γ."""

JUDGES, MOST_FOLDS = 20, 10
"""Held-out sample times that tell one γ from another, and copies that train for them at most."""

ITERATIONS = 10
"""Iterations with each candidate, after the warm-up that they share."""


class GammaPlan(NamedTuple):
    """γ, or the rule that moves it, one sentence that says why, and the mean square noise in units of c."""

    gamma: float | NoiseLevelGamma
    reason: str
    noise: float = 0.0


def plan_gamma(
    option: Gamma,
    counts: SampleCounts,
    start: float,
    *,
    stated: NDArray[np.float64] | None,
    estimated: NDArray[np.float64] | None,
    search: Callable[[], GammaChoice],
) -> GammaPlan:
    """Resolve `--gamma`.

    Parameters
    ----------
    option : float or "auto"
    counts : SampleCounts
        Of all samples.
    start : float
        L at step 0.
    stated, estimated : ndarray, shape (d,), optional
        Noise levels from the file (`relaxed_data.known_noise`) and from dense data (`gamma.estimated_noise`).
    search : callable
        Called only where neither is there: `search_gamma` on this problem.
    """
    noise = estimated if stated is None else stated
    square = 0.0 if noise is None else mean_square_noise(counts, noise)
    if option != "auto":
        return GammaPlan(float(option), f"gamma {option:g} as asked for.", square)
    if noise is not None:
        source = "the noise stated in the file" if stated is not None else "the noise that step 0 shows"
        # what step 0 leaves, x being free there but for q' = v, is no noise that γ could fit
        target = max(noise_misfit(counts, noise), start)
        return GammaPlan(
            NoiseLevelGamma(target, deviation=misfit_deviation(counts, noise)),
            f"gamma follows {source}: the misfit is to end at {target:.3g}.",
            square,
        )
    choice = search()
    tried = ", ".join(f"{error:.3g} at {gamma:g}" for gamma, error in choice.tried)
    return GammaPlan(
        choice.gamma,
        f"gamma {choice.gamma:g} by held-out samples (error {tried}).",
        min(error for _, error in choice.tried) ** 2,
    )


def search_gamma(
    problem: Problem,
    relaxed: RelaxedProblem,
    model: Model,
    options: AlphaOptions,
    theta: ThetaStepOptions,
    *,
    prior: float = 0.0,
    noise: float = 0.0,
    seed: int = 0,
    memory: int = DEFAULT_MEMORY,
    iterations: int = ITERATIONS,
    team: Team = ALONE,
) -> GammaChoice:
    """The γ whose trajectories lie closest to samples that they did not see.

    A copy of the model trains on nine tenths of the sample times, from the largest γ to the smallest, each one
    starting from the X and θ of the one before; on few samples several copies do, each on other nine tenths. The
    held-out error is the noise of `Alpha` from then on, where `noise` (step 0's, in units of c squared; 0 for none)
    asks for a prior by it.
    """
    (samples,) = team.total(relaxed.observed.trajectory.numel())
    folds = int(np.clip(round(JUDGES / (HELD_OUT_SHARE * samples)), 1, MOST_FOLDS))
    splits = [split_samples(relaxed, HELD_OUT_SHARE, seed + number, team) for number in range(folds)]

    def trial_on(kept: RelaxedProblem) -> Alpha:
        own = copy.deepcopy(model)
        return Alpha(problem, kept, own, options, theta, prior=prior, noise=noise, seed=seed, memory=memory, team=team)

    trials = [trial_on(kept) for kept, _ in splits]
    for trial in trials:
        while trial.warming:
            trial.step()

    def held_out_error(gamma: float) -> float:
        squares = [
            _error_after(trial, held, gamma, iterations, team) ** 2
            for trial, (_, held) in zip(trials, splits, strict=True)
        ]
        for trial in trials:
            trial.noise = min(trial.noise, float(np.mean(squares)))
        return float(np.sqrt(np.mean(squares)))

    return choose_by_held_out(held_out_error, CANDIDATES)


def _error_after(trial: Alpha, held: RelaxedProblem, gamma: float, iterations: int, team: Team) -> float:
    """The error at held-out samples after some iterations with this γ; infinite where they diverge."""
    trial.gamma = gamma
    for _ in range(iterations):
        if not np.isfinite(trial.step().total):
            return float("inf")
    return sample_error(held, trial.nodes, team)
