"""From a trajectory file's data and the options to a model and a problem: everything before the first iteration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from snet_cli.config import models as config
from snet_cli.config.models import model_reference
from snet_cli.data.constants import known_constants
from snet_cli.data.options import CommonOptions
from snet_cli.data.trajectories import Trajectories
from snet_cli.errors import DataError, UsageError
from snet_cli.models.base import Model, StateSpace
from snet_cli.models.mlp import Mlp, lag_name
from snet_cli.models.options import GenericOptions, MlpOptions, ModelOptions
from snet_cli.models.registry import MODELS, build_model, default_model, state_space
from snet_cli.models.user import UserSource, read_source
from snet_cli.spectral.mesh import Mesh
from snet_cli.training.held_out_noise import noise_if_exact
from snet_cli.training.node_inputs import inputs_at_nodes
from snet_cli.training.options import FitOptions
from snet_cli.training.problem import Problem, assemble_problem
from snet_cli.training.robust import robust_step_zero
from snet_cli.training.starts import FIRST_LAG, with_lagged_inputs
from snet_cli.training.state_layout import StateLayout, lay_out_states, observed_names
from snet_cli.training.step_zero import StepZero, step_zero
from snet_cli.workflows import memory
from snet_cli.workflows.memory import require_memory
from snet_cli.workflows.trained_model import TrainedModel, training_statistics

STREAM_WEIGHTS, STREAM_SPLIT, STREAM_HELD_OUT, STREAM_PERTURBATION = 1, 2, 3, 4
"""Streams that `fit --seed` keys apart: weights, the drawn validation set, held-out samples and elements, and ξ."""

LARGEST_VALUE = 1e100
"""Largest measured value that is trained on: sums of its square times anything sensible are finite."""


@dataclass(frozen=True)
class ModelChoice:
    """Which model, with which options, from which file of the user's."""

    name: str
    options: ModelOptions
    tree: dict[str, Any]
    source: UserSource | None


@dataclass(frozen=True)
class Setup:
    """Everything before the first iteration."""

    choice: ModelChoice
    layout: StateLayout
    step_zero: StepZero
    problem: Problem
    trained: TrainedModel


def stream(seed: int, number: int) -> int:
    """A seed of its own for each use of randomness."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> np.uint64(2))


def choose_model(options: FitOptions, data: Trajectories) -> ModelChoice:
    """The model that is named, else the one that the file's system asks for.

    Raises
    ------
    UsageError
        If the name or an option of it does not exist.
    """
    reference = model_reference(options.model)
    system = None if data.system is None else str(data.system.get("name"))
    model_options = config.model_options(options.model, default_model(system))
    source = None if reference is None else read_source(reference)
    tree = model_options.model_dump(mode="json")
    return ModelChoice(str(tree["name"]), model_options, tree, source)


def lay_out(options: FitOptions, choice: ModelChoice, data: Trajectories) -> StateLayout:
    """States, outputs and the matrix between them for this model on this data.

    Raises
    ------
    UsageError
        If `observe` or `hidden_states` does not fit the data or the model.
    """
    seen = observed_names(data.output_names, options.observe)
    required = MODELS[choice.name].required_space(seen) if choice.name in MODELS else None
    return lay_out_states(
        data.output_names,
        None if required is None else required.states,
        second_order_of(choice),
        options.observe,
        choice.options.hidden_states if isinstance(choice.options, GenericOptions) else 0,
        _lagged(choice, data),
    )


def second_order_of(choice: ModelChoice) -> dict[str, str]:
    """Pairs q: v with q' = v given."""
    return dict(choice.options.second_order) if isinstance(choice.options, MlpOptions) else {}


def _lagged(choice: ModelChoice, data: Trajectories) -> tuple[str, ...]:
    """The states of lagged inputs."""
    if not isinstance(choice.options, MlpOptions) or choice.options.input_lag == "none":
        return ()
    if not data.inputs.names:
        raise UsageError("model.input_lag: the data has no input that could lag.", "Leave model.input_lag out.")
    return tuple(lag_name(name) for name in data.inputs.names)


def new_model(choice: ModelChoice, space: StateSpace, common: CommonOptions) -> Model:
    """The model with its first weights, drawn from the seed."""
    return build_model(
        choice.name,
        choice.options,
        space,
        seed=stream(common.seed, STREAM_WEIGHTS),
        dtype=torch.float32 if common.dtype == "float32" else torch.float64,
        source=choice.source,
    )


def prepare(
    options: FitOptions,
    common: CommonOptions,
    data: Trajectories,
    device: torch.device,
    deadline: float = math.inf,
    zero: StepZero | None = None,
    problem: Problem | None = None,
) -> Setup:
    """Step 0, the problem on its nodes, and a new model.

    Parameters
    ----------
    deadline : float
        Reading of `time.perf_counter` after which the search for order and elements takes its best so far.
    zero : StepZero, optional
        Step 0 where it is known already.
    problem : Problem, optional
        The problem on it, of another model of the same kind.

    Raises
    ------
    UsageError, DataError
        If the model does not fit the data, or the memory does not suffice.
    """
    _require_outputs(data)
    choice = choose_model(options, data)
    layout = lay_out(options, choice, data)
    seen = observed_names(data.output_names, options.observe)
    space = state_space(choice.name, seen, data.inputs.names)._replace(states=layout.states)
    require_memory("the model", memory.of_network(choice.options, space, options.theta_step.name), common)
    model = new_model(choice, space, common).to(device)
    if zero is None:
        require_memory("step 0", memory.of_step_zero(options, data), common)
        zero = fit_step_zero(options, common, data, choice, layout, deadline)
        if options.loss != "huber" and np.isnan(zero.noise).all():
            zero = replace(zero, noise=_noise_if_exact(options, common, data, layout, zero.mesh))
    size = memory.of_training(options, choice.options, space, zero.mesh.elements, zero.mesh.basis.order)
    require_memory("training", size, common)
    if isinstance(model, Mlp) and model.lags:
        model.first_lag.fill_(FIRST_LAG * data.sampling_interval())
    if problem is None:
        problem = build_problem(options, data, layout, zero, model.constants, space.inputs, device)
    model.fit_normalization(problem.node_data())
    first = zero.mesh.first_element[:-1]
    constants = known_constants(data, model.constants)
    trained = TrainedModel(
        model,
        choice.tree,
        layout,
        space.inputs,
        {name: unit for name, unit in {**data.units, **data.inputs.units}.items() if unit},
        data.time_unit,
        {} if data.inputs.sampled is None else dict(zip(*hold_of(data), strict=True)),
        dict(zip(model.constants, constants.mean(0).tolist(), strict=True)),
        *training_statistics(problem, zero.nodes[first, 0]),
        choice.source,
    )
    return Setup(choice, layout, zero, problem, trained)


def hold_of(data: Trajectories) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sampled inputs, and how each is held."""
    sampled = data.inputs.sampled
    return ((), ()) if sampled is None else (sampled.names, sampled.intersample)


def fit_step_zero(
    options: FitOptions,
    common: CommonOptions,
    data: Trajectories,
    choice: ModelChoice,
    layout: StateLayout,
    deadline: float = math.inf,
    lag_times: NDArray[np.float64] | None = None,
) -> StepZero:
    """Step 0 as the options ask for it; lagged inputs respond with these time constants, at first `FIRST_LAG`."""

    def fit(part: Trajectories, order: int | None, elements: int | None) -> StepZero:
        return step_zero(
            part,
            layout,
            second_order_of(choice),
            order=order if options.order == "auto" else options.order,
            elements=elements if options.elements == "auto" else options.elements,
            known_start=options.x0 != "free",
            scaled_misfit=options.scaled,
            seed=stream(common.seed, STREAM_HELD_OUT),
            deadline=deadline,
        )

    zero = robust_step_zero(fit, data, layout) if options.loss == "huber" else fit(data, None, None)
    if not layout.lags:
        return zero
    if lag_times is None:
        lag_times = np.full(len(layout.lags), FIRST_LAG * data.sampling_interval())
    inputs = inputs_at_nodes(zero.mesh, data.inputs)
    return replace(zero, nodes=with_lagged_inputs(zero.mesh, zero.nodes, layout, inputs, lag_times))


def _noise_if_exact(
    options: FitOptions, common: CommonOptions, data: Trajectories, layout: StateLayout, mesh: Mesh
) -> NDArray[np.float64]:
    return noise_if_exact(
        data,
        layout,
        order=mesh.basis.order,
        elements=mesh.elements_of_longest,
        known_start=options.x0 != "free",
        seed=stream(common.seed, STREAM_HELD_OUT),
    )


def build_problem(
    options: FitOptions,
    data: Trajectories,
    layout: StateLayout,
    zero: StepZero,
    constants: tuple[str, ...],
    inputs: tuple[str, ...],
    device: torch.device,
    fallback: Mapping[str, float] | None = None,
) -> Problem:
    """Inputs at the nodes in the model's order, known constants behind them, and all of it on the device.

    Parameters
    ----------
    fallback : mapping of str to float, optional
        Known constants that the data does not name.
    """
    return assemble_problem(
        layout,
        zero.mesh,
        zero.nodes,
        zero.counts,
        node_channels(zero.mesh, data, constants, inputs, fallback),
        scaled=options.scaled,
        device=device,
    )


def node_channels(
    mesh: Mesh,
    data: Trajectories,
    constants: tuple[str, ...],
    inputs: tuple[str, ...],
    fallback: Mapping[str, float] | None = None,
) -> NDArray[np.float64]:
    """Inputs at the nodes, then known constants, as models see them: shape (N, P, m + c)."""
    u = inputs_at_nodes(mesh, data.inputs)[:, :, [data.inputs.names.index(name) for name in inputs]]
    known = known_constants(data, constants, fallback)[mesh.trajectory]
    held = np.broadcast_to(known[:, None, :], (*u.shape[:2], known.shape[1]))
    return np.concatenate([u, held], axis=2)


def _require_outputs(data: Trajectories) -> None:
    """Every channel is measured somewhere, and the inputs cover the samples."""
    if not data.output_names or data.time.size == 0:
        raise DataError("the file holds no measured outputs, so there is nothing to train on.", "")
    empty = [n for n, column in zip(data.output_names, data.outputs.T, strict=True) if not np.isfinite(column).any()]
    if empty:
        raise DataError(
            f"the channel '{empty[0]}' has no measured value in the trajectories to train on.",
            "Leave it out on import, or train on trajectories that measure it.",
        )
    require_moderate(data)


def require_moderate(data: Trajectories) -> None:
    """No value whose square leaves the range of numbers, and inputs wherever there are samples.

    Raises
    ------
    DataError
    """
    for name, column in zip(data.output_names, data.outputs.T, strict=True):
        largest = float(np.max(np.abs(column), where=np.isfinite(column), initial=0.0))
        if largest > LARGEST_VALUE:
            raise DataError(
                f"the channel '{name}' holds values of {largest:.3g}, whose squares leave the range of numbers.",
                "Give it a unit in which values are of order one.",
            )
    require_inputs_cover(data)


def require_inputs_cover(data: Trajectories) -> None:
    """Sampled inputs are known wherever there are samples.

    Raises
    ------
    DataError
        If a trajectory's inputs start later or end sooner than its outputs.
    """
    if data.inputs.sampled is not None:
        tolerance = 0.01 * data.sampling_interval()
        late = np.flatnonzero(
            (data.inputs.sampled_start() > data.start + tolerance) | (data.inputs.sampled_end() < data.end - tolerance)
        )
        if late.size:
            b = int(late[0])
            raise DataError(
                f"trajectory '{data.ids[b]}': the inputs are known from {data.inputs.sampled_start()[b]:g} to "
                f"{data.inputs.sampled_end()[b]:g} {data.time_unit}, the outputs from {data.start[b]:g} to "
                f"{data.end[b]:g} {data.time_unit}.",
                "Cut the outputs to the time that the inputs cover.",
            )
