"""α-SNet on data that is larger than the memory: X stays in memory, the samples are read for each of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.trajectory_slices import TrajectorySlices
from snet_cli.training.alpha import Alpha
from snet_cli.training.alpha_options import AlphaOptions
from snet_cli.training.gamma import GammaChoice, NoiseLevelGamma, estimated_noise
from snet_cli.training.gamma_search import GammaPlan, plan_gamma, search_gamma
from snet_cli.training.loop import HELD_OUT_EVERY
from snet_cli.training.relaxed_data import known_noise, known_start_mask, relax
from snet_cli.training.relaxed_score import REFERENCE_GAMMA
from snet_cli.training.robust import as_tensor
from snet_cli.workflows.build_alpha import ALPHA, SCORE_COST, mean_square
from snet_cli.workflows.methods import unknowns_notes
from snet_cli.workflows.slices_parts import (
    channels_in_slices,
    counts_in_slices,
    relaxed_slices,
    room_left,
    rule_in_slices,
)
from snet_cli.workflows.slices_setup import SlicedSetup, bytes_of_moves
from snet_cli.workflows.training_plan import (
    IN_SLICES,
    Ingredients,
    Training,
    iteration_limit,
    look_every,
    validation_of,
)
from snet_cli.workflows.training_setup import STREAM_PERTURBATION, stream

FloatArray = NDArray[np.float64]

PLAN = "plan of gamma"
"""Key of `Training.settled`."""


def alpha_in_slices(parts: Ingredients, sliced: SlicedSetup, slices: TrajectorySlices) -> Training:
    """The method and its limits, as `build_alpha` has them."""
    options, setup, team = parts.options, parts.setup, parts.team
    free = options.x0 == "free"
    plan, channels = _plan(parts, sliced, free=free)
    counts = counts_in_slices(sliced, channels, free=free)
    open_notes = unknowns_notes(setup, sliced.counts.trajectories, int(counts.values.sum()), counts.free)
    gamma = REFERENCE_GAMMA if isinstance(plan.gamma, NoiseLevelGamma) else plan.gamma
    rule = replace(rule_in_slices(parts, sliced, gamma, free=free), channel_scale=tuple(channels.tolist()))
    validation = validation_of(parts, rule)
    automatic = options.prior == "auto"
    room = max(room_left(parts) - bytes_of_moves(sliced.problem.nodes.nbytes, team), 0.0)
    method = Alpha(
        replace(sliced.problem, room=room),
        relaxed_slices(sliced, slices, channels, free=free),
        setup.trained.model,
        alpha_options(parts),
        options.theta_step,
        gamma=plan.gamma,
        held_out=None if validation is None else validation.scorer(team),
        threshold=None if setup.step_zero.threshold is None else as_tensor(setup.step_zero.threshold, parts.device),
        prior=0.0 if options.prior == "auto" else options.prior,
        noise=plan.noise * automatic,
        seed=stream(parts.common.seed, STREAM_PERTURBATION),
        team=team,
    )
    looked = HELD_OUT_EVERY
    if validation is not None:
        looked = look_every(SCORE_COST * validation.problem.mesh.elements / sliced.judged.elements)
    return Training(
        method,
        rule,
        iteration_limit(options, ALPHA),
        notes=(plan.reason,),
        choices=open_notes,
        validation=validation,
        look_every=looked,
        settled={IN_SLICES: True, PLAN: _to_json(plan, channels)},
        team=team,
    )


def alpha_options(parts: Ingredients) -> AlphaOptions:
    """How X and θ take turns."""
    return AlphaOptions(state_step=parts.options.state_step, theta_steps=parts.options.theta_step.steps)


def _plan(parts: Ingredients, sliced: SlicedSetup, *, free: bool) -> tuple[GammaPlan, FloatArray]:
    """γ or its rule, and c of L (d,); those of the run that goes on."""
    if PLAN in parts.settled:
        return _from_json(parts.settled[PLAN])
    stated = known_noise(parts.data.train.noise_std, parts.setup.layout.outputs)
    estimated = _estimated_noise(sliced)
    channels = channels_in_slices(parts, sliced, estimated if stated is None and not sliced.exact else stated)
    plan = plan_gamma(
        parts.options.gamma,
        counts_in_slices(sliced, channels, free=free),
        float((sliced.judged.square / channels**2).sum() / max(sliced.judged.times, 1)),
        stated=stated,
        estimated=estimated,
        search=lambda: _search(parts, sliced, channels, free=free),
    )
    looked_at = f"held-out samples of the first {len(sliced.first)} trajectories"
    return plan._replace(reason=plan.reason.replace("held-out samples", looked_at)), channels


def _estimated_noise(sliced: SlicedSetup) -> FloatArray | None:
    """The noise that step 0 shows, where it is exact or the data dense; else None."""
    noise: FloatArray = sliced.setup.step_zero.noise
    if sliced.exact:
        return noise
    return estimated_noise(noise, sliced.counts.samples_per_unknown, sliced.judged.spread, sliced.counts.condition)


def _search(parts: Ingredients, sliced: SlicedSetup, channels: FloatArray, *, free: bool) -> GammaChoice:
    """γ by held-out samples of the first trajectories, which stand in memory; every process finds the same."""
    data, options, setup = sliced.first, parts.options, parts.setup
    block, _ = sliced.frame.step_zero_of(data, sliced.found, parts.device, everywhere=True)
    problem = replace(block, scale=sliced.problem.scale).between(0, len(data))
    known = None if free else known_start_mask(data, setup.layout.states)[0]
    return search_gamma(
        problem,
        relax(problem, data, channels, known_start=known),
        setup.trained.model,
        alpha_options(parts),
        options.theta_step,
        prior=0.0 if options.prior == "auto" else options.prior,
        noise=mean_square(setup.step_zero.noise / channels) if options.prior == "auto" else 0.0,
        seed=stream(parts.common.seed, STREAM_PERTURBATION),
    )


def _to_json(plan: GammaPlan, channels: FloatArray) -> dict[str, Any]:
    rule = plan.gamma if isinstance(plan.gamma, NoiseLevelGamma) else None
    return {
        "gamma": None if isinstance(plan.gamma, NoiseLevelGamma) else plan.gamma,
        "target": None if rule is None else rule.target,
        "deviation": None if rule is None else rule.deviation,
        "reason": plan.reason,
        "noise": plan.noise,
        "channels": channels.tolist(),
    }


def _from_json(tree: Mapping[str, Any]) -> tuple[GammaPlan, FloatArray]:
    gamma = tree["gamma"]
    rule = NoiseLevelGamma(tree["target"], deviation=tree["deviation"]) if gamma is None else float(gamma)
    return GammaPlan(rule, tree["reason"], tree["noise"]), np.array(tree["channels"])
