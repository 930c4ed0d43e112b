"""Small recordings whose right-hand sides are known, and problems made of them."""

from __future__ import annotations

import numpy as np
import torch

from snet_cli.data.signals import FourierInputs, Inputs
from snet_cli.data.trajectories import Trajectories
from snet_cli.models.base import Model, StateSpace
from snet_cli.models.linear import Linear
from snet_cli.models.options import MlpOptions
from snet_cli.models.registry import build_model
from snet_cli.training.node_inputs import inputs_at_nodes
from snet_cli.training.problem import Problem, assemble_problem
from snet_cli.training.state_layout import lay_out_states
from snet_cli.training.step_zero import StepZero, step_zero
from tests.shooting_cases import recording

A = np.array([[-0.3, 2.0], [-2.0, -0.3]])
B = np.array([[0.0, 0.5], [1.0, 0.0]])
OFFSET = np.array([0.2, -0.1])
"""ẋ = A x + B u + c of `spirals`."""


def spirals(trajectories: int = 6, samples: int = 60, *, seed: int = 0, noise: float = 0.0, horizon: float = 4.0):
    """States 'a', 'b' of the linear system above under two sinusoids 'p', 'r', solved in closed form.

    With z = Re(w e^{iωt}) as input the response is Re((iω - A)⁻¹ B w e^{iωt}) plus a decaying part.
    """
    rng = np.random.default_rng(seed)
    values, vectors = np.linalg.eig(A)
    steady = -np.linalg.solve(A, OFFSET)
    times, outputs, x0 = [], [], rng.uniform(-1, 1, (trajectories, 2))
    omega = np.array([1.1, 2.3])
    wave = rng.normal(size=(trajectories, 2)) + 1j * rng.normal(size=(trajectories, 2))
    for b in range(trajectories):
        t = np.linspace(0.0, horizon, samples)
        forced = np.tile(steady, (samples, 1)).astype(complex)
        for channel in range(2):
            response = np.linalg.solve(1j * omega[channel] * np.eye(2) - A, B[:, channel] * wave[b, channel])
            forced += response * np.exp(1j * omega[channel] * t)[:, None]
        forced = forced.real
        free = np.linalg.solve(vectors, (x0[b] - forced[0]).astype(complex))
        decay = (vectors @ (free[:, None] * np.exp(values[:, None] * t))).T.real
        times.append(t)
        outputs.append(forced + decay + noise * rng.normal(size=(samples, 2)))
    # Re(w e^{iωt}) = Re w cos ωt - Im w sin ωt
    fourier = FourierInputs(
        ("p", "r"),
        np.zeros((trajectories, 2)),
        np.tile(omega[None, :, None], (trajectories, 1, 1)),
        wave.real[:, :, None],
        -wave.imag[:, :, None],
    )
    return recording(times, outputs, ("a", "b"), Inputs(("p", "r"), fourier=fourier))


def pendulums(trajectories: int = 4, samples: int = 80, *, seed: int = 0, noise=(0.0, 0.0), both: bool = True):
    """Position 'q' and, if `both`, velocity 'v' of q'' = -4 q - 0.2 v in closed form, with noise on each."""
    rng = np.random.default_rng(seed)
    damping, frequency = 0.1, np.sqrt(4 - 0.01)
    times, outputs = [], []
    for _ in range(trajectories):
        t = np.linspace(0.0, 5.0, samples)
        w = rng.normal() + 1j * rng.normal()
        rate = -damping + 1j * frequency
        state = np.stack([(w * np.exp(rate * t)).real, (w * rate * np.exp(rate * t)).real], -1)
        state += np.array(noise) * rng.normal(size=state.shape)
        times.append(t)
        outputs.append(state if both else state[:, :1])
    return recording(times, outputs, ("q", "v") if both else ("q",))


def series(data: Trajectories, second_order=None, *, order=12, elements=2, known_start=False) -> StepZero:
    """Step 0 of the data on a mesh that is given."""
    layout = lay_out_states(data.output_names, None, second_order or {})
    return step_zero(
        data,
        layout,
        second_order or {},
        order=order,
        elements=elements,
        known_start=known_start,
        scaled_misfit=True,
        seed=0,
    )


def problem_of(data: Trajectories, zero: StepZero | None = None, *, scaled=True, second_order=None, **mesh) -> Problem:
    """The problem on the nodes of step 0."""
    zero = zero or series(data, second_order, **mesh)
    layout = lay_out_states(data.output_names, None, second_order or {})
    inputs = inputs_at_nodes(zero.mesh, data.inputs)
    return assemble_problem(
        layout, zero.mesh, zero.nodes, zero.counts, inputs, scaled=scaled, device=torch.device("cpu")
    )


def true_spiral() -> Linear:
    """The right-hand side of `spirals`."""
    model = Linear(StateSpace(("a", "b"), ("p", "r")), torch.float64)
    with torch.no_grad():
        model.A.copy_(torch.from_numpy(A))
        model.B.copy_(torch.from_numpy(B))
        model.c.copy_(torch.from_numpy(OFFSET))
    return model


def network(data: Trajectories, *, seed: int = 0, dtype=torch.float64, states=None, **options) -> Model:
    """A new mlp for the channels of the data, small unless `hidden` says otherwise."""
    space = StateSpace(states or data.output_names, data.inputs.names)
    return build_model("mlp", MlpOptions(**{"hidden": [8], **options}), space, seed=seed, dtype=dtype)
