"""What a step of `joint` costs beside its parts, and how its time grows with the data; processor time of one run."""

from __future__ import annotations

import time

import pytest
import torch

from snet_cli.data.trajectories import Trajectories
from snet_cli.models.base import Model
from snet_cli.training.arrow import ArrowProblem
from snet_cli.training.block_solver import BlockFactor
from snet_cli.training.linearisation import Linearisation
from snet_cli.training.relaxed import nodes_of
from snet_cli.training.relaxed_data import channel_scale, relax
from snet_cli.training.theta_jacobian import theta_jacobian
from tests.training_cases import network, problem_of, spirals

ROUNDS = 15
GAMMA, DAMPING = 1.0, 1e-2


pytestmark = pytest.mark.usefixtures("one_thread")


def arrow(trajectories: int, elements: int, order: int, hidden: list[int]) -> tuple[ArrowProblem, torch.Tensor]:
    data: Trajectories = spirals(trajectories, 4 + 4 * elements)
    problem = problem_of(data, order=order, elements=elements)
    model: Model = network(data, hidden=hidden)
    model.fit_normalization(problem.node_data())
    relaxed = relax(problem, data, channel_scale(data.outputs, None, scaled=True))
    nodes = nodes_of(problem)
    return ArrowProblem(relaxed, model, nodes), nodes


def step(problem: ArrowProblem, nodes: torch.Tensor) -> None:
    move = Linearisation(problem, nodes, GAMMA, 1e-3).solve(DAMPING)
    assert move is not None
    problem.loss(nodes + move.states)


def parts(problem: ArrowProblem, nodes: torch.Tensor) -> None:
    """Both Jacobians at all points and the factor of all blocks."""
    for batch in problem.batches:
        x = nodes[batch.elements]
        at = (batch.part.t.reshape(-1), x.flatten(0, 1), batch.part.u.flatten(0, 1))
        f, F, _ = theta_jacobian(problem.model, *at)
        system = problem.state_system(batch, x, GAMMA, f, F)
        BlockFactor(system.blocks, batch.part.trajectory, x.shape[2])


def seconds(run, *args) -> float:
    begin = time.thread_time()
    run(*args)
    return time.thread_time() - begin


@pytest.mark.bench
@pytest.mark.parametrize(("elements", "order", "hidden"), [(20, 8, [8]), (4, 16, [8])])
def test_a_step_costs_a_few_times_its_jacobians_and_its_factor(elements, order, hidden, capsys):
    """At most three times both, as long as weights are some tens: the Schur complement costs N_θ² a residual, which no
    factor of A does, and is nearly all of a step with a thousand. Measured 2.7 to 2.9."""
    problem, nodes = arrow(60, elements, order, hidden)
    both = [[seconds(run, problem, nodes) for run in (step, parts)] for _ in range(ROUNDS)]
    whole, own = (min(column) for column in zip(*both, strict=True))
    with capsys.disabled():
        print(f"\n{problem.theta().numel()} weights: step {1e3 * whole:.0f} ms, parts {1e3 * own:.0f} ms")
    assert whole <= 3.0 * own


@pytest.mark.bench
@pytest.mark.parametrize(
    ("small", "large"), [((100, 4), (3000, 4)), ((60, 1), (60, 64))], ids=["100 to 3000 trajectories", "1 to 64"]
)
def test_time_grows_with_the_data_and_no_faster(small, large, capsys):
    """The step's cost of N_θ³ alone is the same in both; at most 1.15 times proportional."""
    times = []
    for trajectories, elements in (small, large):
        problem, nodes = arrow(trajectories, elements, 8, [8])
        step(problem, nodes)
        times.append(min(seconds(step, problem, nodes) for _ in range(3)))
    ratio = times[1] / times[0] / (large[0] * large[1] / (small[0] * small[1]))
    with capsys.disabled():
        print(f"\n{1e3 * times[0]:.1f} ms to {1e3 * times[1]:.1f} ms: {ratio:.2f} times proportional")
    assert ratio <= 1.15
