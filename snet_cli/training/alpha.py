"""α-SNet (Quaglino et al. 2020, Alg. 2): alternate steps on the trajectories and on the weights until γL + R ≤ δ.

while γL(Mx) + R(Mx, θ) > δ:
    N_x times:  x <- step on γL(Mx) + R(Mx, θ)      (`state_step`)
    N_t times:  θ <- step on R(Mx, θ)                (`theta_step`)

In a θ-step x is fixed, so that whatever in f does not depend on θ is computed once per phase.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from snet_cli.distributed import ALONE, Team
from snet_cli.models.base import Model
from snet_cli.training.alpha_options import AlphaOptions
from snet_cli.training.blocks import BlockProblem
from snet_cli.training.closed_form import solve_in_closed_form
from snet_cli.training.gamma import NoiseLevelGamma
from snet_cli.training.lbfgs import LbfgsStep
from snet_cli.training.method import Step
from snet_cli.training.options import ThetaStepOptions
from snet_cli.training.problem import Problem
from snet_cli.training.relaxed import RelaxedParts, RelaxedProblem, nodes_of
from snet_cli.training.relaxed_score import RelaxedScorer
from snet_cli.training.relaxed_slices import total_misfit
from snet_cli.training.robust import weighed
from snet_cli.training.state_step import DEFAULT_MEMORY, GradientStep, build_state_step
from snet_cli.training.theta_lm import LevenbergMarquardtStep
from snet_cli.training.theta_step import ThetaStep, build_theta_step

WARM_GAIN = 1e-3
"""Relative fall of R in one iteration below which the weights know what the series of step 0 can teach them."""

LEAST_WARM_UP = 20
"""Iterations that the weights warm up in any case, where the options allow as many."""

SETTLED_GAIN, SETTLED_FOR = (1e-6, 1e-4), 10
"""Relative fall of J in one iteration, at its γ, that no forecast shows, for how many iterations in a row: the larger
value on noisy data, down to the smaller one on exact data, where the last digits of J still move a forecast."""

NOISE_SHARE = 0.1
"""That fall of J between the two, relative to the mean square noise in units of c."""


class Alpha:
    """α-SNet, resumable between any two steps.

    Parameters
    ----------
    problem : Problem or BlockProblem
        Step 0 of the training data, all elements; in blocks every element counts, and no formula gives θ.
    relaxed : RelaxedParts
        The same with the samples; in parts only Gauss-Newton moves X, and nothing perturbs it.
    model : Model
    options : AlphaOptions
    theta : ThetaStepOptions
    gamma : float or NoiseLevelGamma
        γ, or what adapts it to the noise level while training.
    held_out : RelaxedScorer, optional
        Scores θ on held-out trajectories without solving the ODE.
    threshold : Tensor, shape (d,), optional
        Huber's threshold of each output; squared errors unless given.
    prior : float
        λ of a Gaussian prior on θ: a θ-step descends on R + λ|θ|². Zero in the paper.
    noise : float
        Mean square of the noise in units of c. It adds γ noise / K to λ, so that J + λ|θ|² is, up to a factor, the
        negative log posterior under weights of standard deviation one (MacKay 1992). Zero in the paper.
    seed : int
        Keys the perturbation of the initial trajectories.
    memory : int
        Bytes that the x-step's blocks may take.
    team : Team
        The processes; both problems are this one's parts of the whole. An x-step needs nobody else.

    Notes
    -----
    A model with a closed form (`linear`) is solved in every θ-phase instead of stepped.
    """

    name = "alpha"

    def __init__(
        self,
        problem: Problem | BlockProblem,
        relaxed: RelaxedParts,
        model: Model,
        options: AlphaOptions,
        theta: ThetaStepOptions,
        *,
        gamma: float | NoiseLevelGamma = 3.0,
        held_out: RelaxedScorer | None = None,
        threshold: Tensor | None = None,
        prior: float = 0.0,
        noise: float = 0.0,
        seed: int = 0,
        memory: int = DEFAULT_MEMORY,
        team: Team = ALONE,
    ) -> None:
        self.team = team
        self.samples = relaxed.sample_times(team)
        self.problem, self.model, self.options = problem, model, options
        self.relaxed = self.unweighed = relaxed
        self.gamma_rule = gamma if isinstance(gamma, NoiseLevelGamma) else None
        self.gamma = gamma.value if isinstance(gamma, NoiseLevelGamma) else gamma
        self.scorer = held_out
        self.threshold = threshold
        self.prior, self.noise = prior, noise
        self.iteration = 0
        self.warming = options.warm_up > 0
        self.quiet = 0  # iterations in a row in which J hardly fell
        self.last = Step(float("inf"), float("inf"), float("inf"))
        nodes = nodes_of(problem)
        if isinstance(relaxed, RelaxedProblem):
            nodes += perturbation(relaxed, options.perturbation, seed, team.before(relaxed.trajectories))
        self.states = build_state_step(
            options.state_step, relaxed, model, nodes, own=options.own_descent, memory=memory
        )
        fixed = self._problem_at(nodes)
        self.residual = fixed.residual(model)
        self.closed_form = isinstance(fixed, Problem) and solve_in_closed_form(model, fixed.node_data(), team)
        self.theta: ThetaStep | None = (
            None if self.closed_form else build_theta_step(theta, model, self._loss, fixed, self._prior(), team)
        )
        self.warming = self.warming and self.theta is not None

    @property
    def outcome(self) -> str | None:
        """Why further iterations gain nothing, where they do: J no longer falls, and γ is where its rule wants it.

        Steepest descent creeps, so that a small gain says nothing there.
        """
        arrived = self.gamma_rule is None or self.gamma_rule.arrived(self.last.misfit)
        if self.quiet < SETTLED_FOR or not arrived or isinstance(self.states, GradientStep):
            return None
        return f"J has fallen by less than {self._little():.2g} of itself in each of {SETTLED_FOR} iterations."

    def _little(self) -> float:
        """Relative fall of J that no forecast shows."""
        least, most = SETTLED_GAIN
        return min(max(NOISE_SHARE * self.noise, least), most)

    @property
    def evaluations(self) -> int:
        """Evaluations of J or R with derivatives so far."""
        return self.states.evaluations + (self.iteration if self.theta is None else self.theta.evaluations)

    @property
    def nodes(self) -> Tensor:
        """X as node values, shape (N, P, n)."""
        return self.states.nodes

    def step(self) -> Step:
        """One iteration: N_x steps on x, then N_t on θ; θ alone while it warms up."""
        self.iteration += 1
        if not self.warming:
            self._move_states()
        residual = self._move_theta()
        error = total_misfit(self.relaxed, self.nodes, self.team)
        now = Step(residual, error, self.gamma * error + residual)
        if self.warming:
            gains = self.iteration < LEAST_WARM_UP or self.last.residual - residual > WARM_GAIN * residual
            self.warming = gains and self.iteration < self.options.warm_up
        else:
            before = self.gamma * self.last.misfit + self.last.residual
            self.quiet = self.quiet + 1 if abs(before - now.total) <= self._little() * now.total else 0
            if self.gamma_rule is not None:
                self.gamma = self.gamma_rule.update(error)
        self.last = now
        return now

    def end_warm_up(self) -> None:
        """Let X move from the next step on, as in most of them."""
        self.warming = False

    def held_out(self) -> Tensor | None:
        """J of the held-out trajectories at the scorer's γ, their X minimising Eq. 4 with θ fixed (Sec. 7)."""
        if self.scorer is None:
            return None
        return torch.tensor(self.scorer.score(self.model).total, dtype=torch.float64)

    def _move_states(self) -> None:
        if self.threshold is not None:
            self.relaxed = weighed(self.unweighed, self.nodes, self.threshold)
            self.states.use(self.relaxed)
        for _ in range(self.options.state_step.steps):
            self.states.step(self.gamma)

    def _move_theta(self) -> float:
        """N_t steps on R with x fixed; returns R after them."""
        fixed = self._problem_at(self.nodes)
        if self.closed_form and isinstance(fixed, Problem):
            solve_in_closed_form(self.model, fixed.node_data(), self.team)
        self.residual = fixed.residual(self.model)
        value = float("nan")
        if self.theta is not None:
            if isinstance(self.theta, LbfgsStep):
                self.theta.reopen()
            elif isinstance(self.theta, LevenbergMarquardtStep):
                self.theta.use(fixed, self._prior())
            for _ in range(self.options.theta_steps):
                value = self.theta.step()
        if self._prior() > 0 or not isinstance(self.theta, LbfgsStep):
            with torch.no_grad():
                value = float(self.team.sum(self.residual())[0])
        return value

    def _loss(self) -> Tensor:
        prior = self._prior()
        if prior == 0 or not self.team.is_lead:  # once in the sum over the processes
            return self.residual()
        return self.residual() + prior * torch.stack([(p * p).sum() for p in self.model.parameters()]).sum()

    def _prior(self) -> float:
        return self.prior + self.gamma * self.noise / max(self.samples, 1)

    def _problem_at(self, nodes: Tensor) -> Problem | BlockProblem:
        """The problem on the current X; every element counts, those in gaps too."""
        if isinstance(self.problem, BlockProblem):
            return replace(self.problem, nodes=nodes.cpu().numpy())
        assert isinstance(self.relaxed, RelaxedProblem)
        return replace(
            self.problem,
            x=nodes.flatten(0, 1),
            derivative=self.relaxed.slope(nodes).flatten(0, 1),
            weight=self.relaxed.quadrature.flatten(),
        )

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs beside θ and the options: X, dampings, γ, the optimiser's memory.

        On the lead X is that of all processes.
        """
        saved = {f"states.{name}": self._whole(value) for name, value in self.states.state().items()}
        progress = [float(self.iteration), self.gamma, float(self.warming), float(self.quiet), *self.last]
        saved["progress"] = torch.tensor(progress, dtype=torch.float64)
        if self.theta is not None:
            saved |= {f"theta.{name}": value for name, value in self.theta.state().items()}
        if self.scorer is not None:
            saved["held_out.nodes"] = self.scorer.state()
        return saved

    def _whole(self, value: Tensor) -> Tensor:
        return self.team.collect(value) if value.dim() else value

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned, on a model with the θ of that moment."""
        own = {name: value.shape[0] for name, value in self.states.state().items() if value.dim()}
        whole = {k.removeprefix("states."): v for k, v in state.items() if k.startswith("states.")}
        self.states.restore({name: self.team.own(v, own[name]) if name in own else v for name, v in whole.items()})
        if self.scorer is not None and "held_out.nodes" in state:
            self.scorer.restore(state["held_out.nodes"])
        iteration, self.gamma, warming, quiet, *last = state["progress"].tolist()
        self.iteration, self.warming, self.quiet, self.last = int(iteration), bool(warming), int(quiet), Step(*last)
        if self.gamma_rule is not None:
            self.gamma_rule.value = self.gamma
        if self.theta is not None:
            self.theta.restore({k.removeprefix("theta."): v for k, v in state.items() if k.startswith("theta.")})


def perturbation(relaxed: RelaxedProblem, bound: float, seed: int, before: int = 0) -> Tensor:
    """ξ ~ U(-bound, bound), one draw per trajectory and state, as an offset of all its nodes: shape (N, 1, n).

    An offset of all node values is one of the constant coefficient. A state whose x(t0) is known keeps its trajectory.

    Parameters
    ----------
    before : int
        Trajectories of other processes whose draws come first.
    """
    B, n = relaxed.known_start.shape
    rng = np.random.default_rng([seed, 0xA1FA])
    draw = rng.uniform(-bound, bound, (before + B, n))[before:] if bound else np.zeros((B, n))
    offset = torch.from_numpy(draw).to(relaxed.scale.device) * ~relaxed.known_start
    return offset[relaxed.trajectory][:, None, :]
