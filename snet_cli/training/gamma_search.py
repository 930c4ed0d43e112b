"""Which rule sets γ: a number, the noise level that the file states or dense data shows, else held-out samples."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from snet_cli.models.base import Model
from snet_cli.training.alpha import Alpha
from snet_cli.training.alpha_options import AlphaOptions, Gamma
from snet_cli.training.gamma import (
    CANDIDATES,
    START,
    GammaChoice,
    NoiseLevelGamma,
    choose_by_held_out,
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

ITERATIONS = 10
"""Iterations with each candidate, after the warm-up that they share."""


class GammaPlan(NamedTuple):
    """γ, or the rule that moves it, and one sentence that says why."""

    gamma: float | NoiseLevelGamma
    reason: str


def plan_gamma(
    option: Gamma,
    relaxed: RelaxedProblem,
    *,
    stated: NDArray[np.float64] | None,
    estimated: NDArray[np.float64] | None,
    search: Callable[[], GammaChoice],
    exact: bool = False,
) -> GammaPlan:
    """Resolve `--gamma`.

    Parameters
    ----------
    option : float or "auto"
    stated, estimated : ndarray, shape (d,), optional
        Noise levels from the file (`relaxed.known_noise`) and from dense data (`gamma.estimated_noise`).
    search : callable
        Called only where neither is there: `search_gamma` on this problem.
    exact : bool
        Whether step 0's held-out error is below `method_choice.EXACT` of every channel's deviation: then there is no
        noise to find, and any γ of order 1 serves.
    """
    if option != "auto":
        return GammaPlan(float(option), f"gamma {option:g} as asked for.")
    if stated is None and exact:
        return GammaPlan(START, f"gamma {START:g}: step 0 is so exact that the misfit is no noise.")
    noise = estimated if stated is None else stated
    if noise is not None:
        source = "the noise stated in the file" if stated is not None else "the noise that step 0 shows"
        target = noise_misfit(relaxed, noise)
        return GammaPlan(NoiseLevelGamma(target), f"gamma follows {source}: the misfit is to end at {target:.3g}.")
    choice = search()
    tried = ", ".join(f"{error:.3g} at {gamma:g}" for gamma, error in choice.tried)
    return GammaPlan(choice.gamma, f"gamma {choice.gamma:g} by held-out samples (error {tried}).")


def search_gamma(
    problem: Problem,
    relaxed: RelaxedProblem,
    model: Model,
    options: AlphaOptions,
    theta: ThetaStepOptions,
    *,
    seed: int = 0,
    memory: int = DEFAULT_MEMORY,
    iterations: int = ITERATIONS,
) -> GammaChoice:
    """The γ whose trajectories lie closest to samples that they did not see.

    A copy of the model trains on nine tenths of the sample times, from the largest γ to the smallest, each one
    starting from the X and θ of the one before.
    """
    kept, held = split_samples(relaxed, HELD_OUT_SHARE, seed)
    trial = Alpha(problem, kept, copy.deepcopy(model), options, theta, seed=seed, memory=memory)
    for _ in range(options.warm_up):
        trial.step()

    def held_out_error(gamma: float) -> float:
        trial.gamma = gamma
        for _ in range(iterations):
            if not np.isfinite(trial.step().total):
                return float("inf")
        return sample_error(held, trial.nodes)

    return choose_by_held_out(held_out_error, CANDIDATES)
