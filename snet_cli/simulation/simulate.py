"""`simulate`: a ground truth integrated, sampled and disturbed.

The truth depends on (system, parameters, seed, trajectory) only. Times, noise and gaps are drawn for all K samples
before any is dropped, so that a thinned or a noisier file is a view of the same recording.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.shares import shares
from snet_cli.data.signals import Inputs
from snet_cli.data.trajectories import Trajectories
from snet_cli.distributed import ALONE, Team
from snet_cli.errors import NumericalError, UsageError
from snet_cli.simulation.sampling import Sampling, kept_samples, sample_times
from snet_cli.systems.registry import get_system, system_parameters
from snet_cli.systems.streams import Stream, generators
from snet_cli.systems.system import InputDraw, System, SystemParameters

if TYPE_CHECKING:
    import torch

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
CHUNK = 2000
"""Trajectories integrated at a time: their steps fit into a processor's cache."""

TRUTH_EVALUATIONS = 20_000_000
"""Evaluations of f per trajectory: a truth may be long, so that only `Tolerances.patience` ends one early."""


@dataclass(frozen=True)
class Simulation:
    """A simulated file and how its integration went.

    Attributes
    ----------
    trajectories : Trajectories
    outcomes : mapping of str to int
        Trajectories by the label of their outcome ("ok", "diverged", ...); only those that occur.
    notes : tuple of str
        What a user should know.
    evaluations : int
        Evaluations of f, summed over trajectories.
    """

    trajectories: Trajectories
    outcomes: Mapping[str, int]
    notes: tuple[str, ...]
    evaluations: int


class Truth(NamedTuple):
    """States (B, K, n), NaN behind a failure, outcome labels (B,), and evaluations of f."""

    states: FloatArray
    outcome: tuple[str, ...]
    evaluations: int


def simulate(
    system_name: str,
    parameters: Mapping[str, Any] | SystemParameters | None = None,
    *,
    trajectories: int = 100,
    horizon: float | None = None,
    samples: int | None = None,
    sampling: Sampling = "uniform",
    keep: float = 1.0,
    noise: float = 0.0,
    missing: float = 0.0,
    unknown_x0: bool = False,
    input_horizon: float = 10.0,
    seed: int = 0,
    device: torch.device | str = "cpu",
    should_stop: Callable[[], bool] | None = None,
    team: Team = ALONE,
    part: tuple[int, int] | None = None,
) -> Simulation:
    """Trajectories of a ground truth, as `snet simulate` writes them.

    Parameters
    ----------
    system_name : str
        A key of `SYSTEMS`.
    parameters : mapping or SystemParameters, optional
        The system's own parameters; what is not named has its default.
    trajectories, samples : int
    horizon : float, optional
        Length T; the system's own by default, as for `samples`.
    sampling : {"uniform", "random", "lobatto"}
        K times on [0, T], both ends included.
    keep : float
        Share of the samples that stays.
    noise : float
        Standard deviation of Gaussian noise in each channel's own unit.
    missing : float
        Probability that a single value is lost.
    unknown_x0 : bool
        Leave the exact initial states out.
    input_horizon : float
        Period of the fundamental of Fourier inputs.
    seed : int
    device : torch.device or str
        Where f is evaluated.
    should_stop : callable, optional
        Ends the integration early; what is missing counts as `budget`.
    team : Team
        The processes that share the trajectories; each of them has all in the end.
    part : (int, int), optional
        Of all trajectories only those from the first number to before the second: the same as in the whole, but that
        none of a part may reach the horizon.

    Returns
    -------
    Simulation

    Raises
    ------
    UsageError
        For an unknown system or parameter, or a number out of range.
    NumericalError
        If not one trajectory reaches the horizon.
    """
    system = get_system(system_name)
    chosen = system_parameters(system, parameters or {})
    T = system.horizon if horizon is None else float(horizon)
    K = system.samples if samples is None else int(samples)
    _check(trajectories, T, K, keep, noise, missing, input_horizon, seed)

    first, end = (0, trajectories) if part is None else part
    B = end - first
    x0 = np.stack([system.start(chosen, rng) for rng in generators(seed, Stream.INITIAL_STATE, B, first)])  # (B, n)
    inputs = system.inputs(chosen, InputDraw(generators(seed, Stream.INPUTS, B, first), input_horizon, T))
    times = sample_times(sampling, T, K, seed, B, first)  # (B, K)
    truth = integrate_truth(system, chosen, x0, inputs, times, device, should_stop, team)
    kept = kept_samples(sampling, keep, K, seed, B, first)  # (B, kept)
    measured = _measure(truth.states, noise, missing, seed, first)

    channels = system.channels(chosen)
    outcomes = {label: truth.outcome.count(label) for label in dict.fromkeys(truth.outcome)}
    data = Trajectories(
        ids=tuple(f"{b:03d}" for b in range(first, end)),
        row_size=np.full(B, kept.shape[1], np.int64),
        time=np.take_along_axis(times, kept, 1).ravel(),
        outputs=np.take_along_axis(measured, kept[:, :, None], 1).reshape(-1, x0.shape[1]),
        output_names=channels.states,
        state_names=channels.states,
        inputs=inputs,
        units=dict(channels.units),
        noise_std=dict.fromkeys(channels.states, noise) if noise > 0 else {},
        truth=np.take_along_axis(truth.states, kept[:, :, None], 1).reshape(-1, x0.shape[1]),
        x0=np.full_like(x0, np.nan) if unknown_x0 else x0,
        system={"name": system.name, **chosen.model_dump(), "input_horizon": input_horizon},
        title=system.title,
    )
    notes = outcome_notes(outcomes, B, system.name) if part is None else ()
    return Simulation(data, outcomes, notes, truth.evaluations)


def integrate_truth(
    system: System[Any],
    parameters: SystemParameters,
    x0: FloatArray,
    inputs: Inputs,
    times: FloatArray,
    device: torch.device | str = "cpu",
    should_stop: Callable[[], bool] | None = None,
    team: Team = ALONE,
) -> Truth:
    """States of the system at the times (B, K), a chunk of trajectories at a time."""
    import torch

    from snet_cli.integration import InputSignal, Outcome, Tolerances, integrate

    f = system.derivative(parameters)
    tolerances = Tolerances(rtol=system.rtol, atol=system.rtol, max_evaluations=TRUTH_EVALUATIONS)
    B, K = times.shape
    own = shares(np.full(B, K), team.size)[team.rank]
    states = np.empty((own.stop - own.start, K, x0.shape[1]))
    outcome: list[int] = []
    points = 0
    for first in range(own.start, own.stop, CHUNK):
        rows = np.arange(first, min(first + CHUNK, own.stop))
        solution = integrate(
            f,
            torch.as_tensor(x0[rows], device=device),
            torch.zeros(rows.size, dtype=torch.float64, device=device),
            torch.full((rows.size,), K, dtype=torch.int64),
            torch.from_numpy(times[rows].ravel()),
            InputSignal.from_inputs(inputs.select(rows), rows.size, device=device),
            tolerances=tolerances,
            should_stop=should_stop,
        )
        states[rows - own.start] = solution.states.cpu().numpy().reshape(rows.size, K, -1)
        outcome += solution.outcome.tolist()
        points += solution.points
    codes = team.gather(torch.tensor(outcome)).tolist()
    everywhere = team.gather(torch.from_numpy(states)).numpy()
    return Truth(everywhere, tuple(Outcome(code).label for code in codes), int(team.total(points)[0]))


def _measure(states: FloatArray, noise: float, missing: float, seed: int, first: int) -> FloatArray:
    """The states with noise, and without what was lost; shape (B, K, n)."""
    if noise == 0 and missing == 0:
        return states
    measured = states.copy()
    if noise > 0:
        for values, rng in zip(measured, generators(seed, Stream.NOISE, len(measured), first), strict=True):
            values += noise * rng.standard_normal(values.shape)
    if missing > 0:
        for values, rng in zip(measured, generators(seed, Stream.MISSING, len(measured), first), strict=True):
            values[rng.random(values.shape) < missing] = np.nan
    return measured


def outcome_notes(outcomes: Mapping[str, int], trajectories: int, system: str) -> tuple[str, ...]:
    """What became of trajectories that did not reach the horizon.

    Raises
    ------
    NumericalError
        If not one did.
    """
    failed = {label: count for label, count in outcomes.items() if label != "ok"}
    if not failed:
        return ()
    what = ", ".join(f"{count} {label}" for label, count in failed.items())
    if "ok" not in outcomes:
        raise NumericalError(
            f"none of the {trajectories} trajectories of {system} reached the horizon ({what}).",
            "Choose a shorter --horizon or other parameters.",
        )
    return (
        f"{sum(failed.values())} of {trajectories} trajectories ended before the horizon ({what}); "
        "their samples from there on are missing.",
    )


def _check(
    trajectories: int,
    horizon: float,
    samples: int,
    keep: float,
    noise: float,
    missing: float,
    input_horizon: float,
    seed: int,
) -> None:
    """Refuse numbers out of range, whoever calls."""
    rules = (
        ("trajectories", trajectories, trajectories >= 1, "at least 1"),
        ("horizon", horizon, 0 < horizon < np.inf, "positive and finite"),
        ("samples", samples, samples >= 2, "at least 2"),
        ("keep", keep, 0 < keep <= 1, "in (0, 1]"),
        ("noise", noise, 0 <= noise < np.inf, "at least 0 and finite"),
        ("missing", missing, 0 <= missing < 1, "in [0, 1)"),
        ("input_horizon", input_horizon, 0 < input_horizon < np.inf, "positive and finite"),
        ("seed", seed, seed >= 0, "at least 0"),
    )
    for name, value, holds, expected in rules:
        if not holds:
            raise UsageError(f"{name} = {value:g}, expected {expected}.", "See 'snet simulate --help'.")
