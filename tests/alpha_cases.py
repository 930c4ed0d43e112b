"""Small relaxed problems with known answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from snet_cli.training.relaxed import RelaxedProblem, nodes_of
from snet_cli.training.relaxed_data import channel_scale, relax
from tests.training_cases import problem_of, spirals


def sparse(data, keep: float, *, missing: float = 0.0, seed: int = 0):
    """The data with a share of its samples at irregular times, ends included, and single values lost."""
    rng = np.random.default_rng(seed)
    chosen = rng.random(data.time.size) < keep
    ends = np.concatenate([data.offsets[:-1], data.offsets[1:] - 1])
    chosen[ends] = True
    part = data.select_rows(chosen)
    lost = rng.random(part.outputs.shape) < missing
    return replace(part, outputs=np.where(lost, np.nan, part.outputs))


def relaxed_spirals(trajectories=4, *, keep=0.5, missing=0.2, noise=0.02, elements=2, order=6, known=False, **more):
    """Data, problem, relaxed problem and node values of noisy spirals with gaps in single channels."""
    data = sparse(spirals(trajectories, 60, noise=noise, **more), keep, missing=missing)
    problem = problem_of(data, order=order, elements=elements)
    start = np.zeros((trajectories, 2), bool)
    start[:, 0] = known
    relaxed: RelaxedProblem = relax(problem, data, channel_scale(data.outputs, None, scaled=True), known_start=start)
    return data, problem, relaxed, nodes_of(problem)
