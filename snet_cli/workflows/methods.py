"""Training methods by name, and which one `auto` means. A method is added in a file of its own and one line here."""

from __future__ import annotations

import numpy as np

from snet_cli.errors import DataError, NumericalError, UsageError
from snet_cli.training.arrow import batch_bytes, schur_fits
from snet_cli.training.held_out_noise import held_out_error
from snet_cli.training.method_choice import MethodChoice, choose_method, why_not_joint
from snet_cli.training.options import FitOptions
from snet_cli.training.relaxed_data import known_start_mask
from snet_cli.training.state_layout import StateLayout
from snet_cli.training.theta_jacobian import theta_jacobian
from snet_cli.workflows.build_alpha import ALPHA
from snet_cli.workflows.build_delta import DELTA
from snet_cli.workflows.build_joint import JOINT, MEMORY_SHARE
from snet_cli.workflows.build_shooting import SHOOTING_METHODS, shooting_entry
from snet_cli.workflows.memory import free_memory
from snet_cli.workflows.training_plan import Ingredients, MethodEntry, Training, iteration_limit
from snet_cli.workflows.training_setup import STREAM_HELD_OUT, Setup, stream

METHODS: dict[str, MethodEntry] = {
    "delta": DELTA,
    "alpha": ALPHA,
    "joint": JOINT,
    **{name: shooting_entry(name) for name in SHOOTING_METHODS},
}
"""Registry name -> how it is built."""


def resolve_method(parts: Ingredients) -> MethodChoice:
    """The method that the options name, or the one that `auto` comes to and the test that decided.

    Raises
    ------
    UsageError
        If the method cannot train with this many states measured.
    """
    options, layout = parts.options, parts.setup.layout
    if options.method in SHOOTING_METHODS and parts.team.size > 1:
        raise UsageError(
            f"method {options.method} integrates all trajectories in one batch, in one process, not {parts.team.size}.",
            "Use one process, or --method delta, alpha or joint.",
        )
    if options.method != "auto":
        check_method(options.method, layout)
        return MethodChoice(options.method, "as asked for.")
    weights = sum(p.numel() for p in parts.setup.trained.model.parameters())
    obstacle = _why_not_joint(parts, weights)
    if options.preset == "paper":
        obstacle = "the paper has two methods of its own"
    if obstacle is None:
        return MethodChoice("joint", f"the Schur complement of its {weights} weights fits the memory.")
    choice = _first_order_method(parts)
    return choice._replace(reason=f"{choice.reason} (Not joint: {obstacle}.)")


def _why_not_joint(parts: Ingredients, weights: int) -> str | None:
    """What keeps joint from being taken: the problem's size (`method_choice`), or a module it cannot differentiate.

    A trajectory is the least that is eliminated at a time.
    """
    setup, memory = parts.setup, MEMORY_SHARE * free_memory(parts.common)
    mesh, problem = setup.step_zero.mesh, setup.problem
    rows = (mesh.basis.order + 1) * len(setup.layout.states)
    longest = batch_bytes(mesh.elements_of_longest * rows, weights, rows)
    obstacle = why_not_joint(
        setup.layout,
        weights,
        mesh.trajectory.size * rows,
        fits=schur_fits(weights, memory) and longest <= memory,
    )
    if obstacle is None and setup.trained.source is not None:
        try:
            theta_jacobian(setup.trained.model, problem.t[:2], problem.x[:2], problem.u[:2])
        except NumericalError:
            return "the module cannot be differentiated twice"
    return obstacle


def _first_order_method(parts: Ingredients) -> MethodChoice:
    """δ-SNet or α-SNet."""
    options, layout, data, zero = parts.options, parts.setup.layout, parts.data.train, parts.setup.step_zero
    error = zero.noise
    if not np.isfinite(error).all():
        error = held_out_error(
            data,
            layout,
            order=zero.mesh.basis.order,
            elements=zero.mesh.elements_of_longest,
            known_start=options.x0 != "free",
            seed=stream(parts.common.seed, STREAM_HELD_OUT),
        )
    return choose_method(
        zero.mesh,
        data,
        condition=zero.condition,
        held_out_error=error,
        hidden=layout.hidden,
        determined=layout.all_measured,
    )


def check_method(name: str, layout: StateLayout) -> None:
    """δ-SNet needs every state in step 0; the other methods estimate or integrate what no output sees.

    Raises
    ------
    UsageError
        If it needs hidden states other than velocities that are derivatives of measured positions.
    """
    supplied = {layout.states[v] for v, q in layout.derived if layout.states[q] not in layout.hidden}
    unknown = [state for state in layout.hidden if state not in supplied]
    determined = np.linalg.matrix_rank(layout.observation) + len(layout.hidden) == len(layout.states)
    if not METHODS[name].needs_all_states or (determined and not unknown):
        return
    what = f"nothing measures {', '.join(unknown)}" if unknown else "the outputs do not determine the states"
    raise UsageError(
        f"method {name} needs the trajectory of every state, and {what}.",
        "Choose --method joint or alpha, which estimate them.",
    )


def check_unknowns(method: str, parts: Ingredients) -> tuple[str, ...]:
    """Notes on data that leaves weights or initial states open, where the method estimates both.

    Raises
    ------
    DataError
        If there are fewer measured values than initial states to be estimated: no regulariser makes up for that.
    """
    if METHODS[method].needs_all_states or method in SHOOTING_METHODS:
        return ()
    setup, data = parts.setup, parts.data.train
    values = int(np.isfinite(data.outputs).sum())
    known = known_start_mask(data, setup.layout.states)[0] if parts.options.x0 != "free" else False
    free = ~np.broadcast_to(known, (len(data), len(setup.layout.states)))
    starts = int(free.sum() - free[:, [s for s, _ in setup.layout.lags]].sum())  # lagged inputs start at u(t0)
    return unknowns_notes(setup, len(data), values, starts)


def unknowns_notes(setup: Setup, trajectories: int, values: int, starts: int) -> tuple[str, ...]:
    """The same from numbers: measured values, and initial states to be estimated.

    Raises
    ------
    DataError
    """
    if values < starts:
        raise DataError(
            f"{values} measured values cannot determine {starts} initial states ({len(setup.layout.states)} in each of "
            f"{trajectories} trajectories): {starts - values} are missing.",
            "Take fewer hidden states, or longer recordings.",
        )
    weights = sum(p.numel() for p in setup.trained.model.parameters())
    if values >= starts + weights:
        return ()
    return (
        f"{values} measured values for {weights} weights and {starts} initial states: {starts + weights - values} are "
        "missing to determine them all; what stays open is held near its start. Smaller model.hidden may forecast "
        "better.",
    )


def iterations_of(options: FitOptions, method: str) -> int:
    """Most iterations of this method under these options."""
    return iteration_limit(options, METHODS[method])


def build_training(name: str, parts: Ingredients) -> Training:
    """The method of a registry name."""
    return METHODS[name].build(parts)
