"""Joint Gauss-Newton: Levenberg-Marquardt on the trajectories X and the weights θ together, γ falling to the exact ODE.

    warm-up:  θ alone with X of step 0 (δ-SNet), as long as a network that knows nothing would only spoil X (`warm_up`);
              it is all there is where exact data has kinks
    then:     (X, θ) <- (X, θ) + one damped Gauss-Newton step on J = γ(L + Σ ν θ²) + R        (`arrow`)
              γ falls when its level has converged, until the ODE holds to the discretisation error (`continuation`), or
              forecasts of data that nothing obeys to its noise get worse (`levels`); where a level ends, noisy data
              says how far the weights may go (`evidence`)
    at last:  the mesh is refined where noise would not hide its error, and γ falls further (`refinement`)

A step is taken only where it decreases J (`descent`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snet_cli.distributed import ALONE, Team
from snet_cli.models.base import Model
from snet_cli.spectral.mesh import Mesh
from snet_cli.training.arrow import DEFAULT_MEMORY, ArrowProblem, Loss
from snet_cli.training.blocks import BlockProblem
from snet_cli.training.closed_form import solve_in_closed_form
from snet_cli.training.continuation import Continuation, Verdict
from snet_cli.training.descent import STATE_DAMPING, Descent, Failure, Trust
from snet_cli.training.evidence import MOST_ROUNDS, Evidence
from snet_cli.training.levels import Levels
from snet_cli.training.linearisation import System
from snet_cli.training.method import Step
from snet_cli.training.problem import Problem
from snet_cli.training.refinement import Gain, Remesher, mesh_from_state, mesh_state
from snet_cli.training.relaxed import RelaxedParts, nodes_of
from snet_cli.training.relaxed_score import RelaxedScorer
from snet_cli.training.warm_up import ROUGH_IF_EXACT, WarmUp

FIRST_STEP = 10.0
"""Time of the first step beside the longest of the warm-up: measured 4 to 7."""

Outcome = Literal["converged"] | Failure

OUTCOMES: tuple[Outcome, ...] = ("converged", "stalled", "not-finite", "damping-at-limit")
"""In the order of their numbers in a state."""


class Joint:
    """Levenberg-Marquardt on X and θ, resumable between any two steps.

    Parameters
    ----------
    problem : Problem or BlockProblem
        Step 0 of the training data, all elements; in blocks every element counts, and no formula gives θ.
    relaxed : RelaxedParts
        The same with the samples.
    model : Model
    gamma : float, optional
        A fixed γ; falling to the exact constraint unless given.
    prior : float
        ν of the term γν|θ|²; not used where there is `evidence`, which begins with its unit.
    held_out : RelaxedScorer, optional
        Scores θ on held-out trajectories without solving the ODE.
    threshold : Tensor, shape (d,), optional
        Huber's threshold of each output; squared errors unless given.
    remesher : Remesher, optional
        Refines the mesh when the problem on it has converged; the mesh stays unless given.
    exact : bool
        Whether step 0 is as good as the truth.
    rough : int
        Iterations of L-BFGS in the warm-up, where it is.
    evidence : Evidence, optional
        Chooses ν of each tensor.
    levels : Levels, optional
        Judges the levels of γ; all are taken for good unless given.
    memory : int
        Bytes for the arrays of one batch of trajectories.
    team : Team
        The processes; the problem and X are this one's parts of the whole.

    Attributes
    ----------
    outcome : str or None
        How it ended; None while it goes on.
    refined_at : int
        Iteration of the last refinement; held-out scores from before are those of another mesh.
    failure : str or None
        What went wrong, where it ended as "not-finite".
    """

    name = "joint"

    def __init__(
        self,
        problem: Problem | BlockProblem,
        relaxed: RelaxedParts,
        model: Model,
        *,
        gamma: float | None = None,
        prior: float = 0.0,
        held_out: RelaxedScorer | None = None,
        threshold: Tensor | None = None,
        remesher: Remesher | None = None,
        exact: bool = False,
        rough: int = ROUGH_IF_EXACT,
        evidence: Evidence | None = None,
        levels: Levels | None = None,
        memory: int = DEFAULT_MEMORY,
        team: Team = ALONE,
    ) -> None:
        self.team = team
        self.levels = levels or Levels(None, 0.0)
        self.model, self.scorer, self.threshold = model, held_out, threshold
        self.evidence, self.memory, self.exact = evidence, memory, exact
        self.remesher, self.gain, self.refined_at = remesher, Gain(), 0
        self._use(relaxed, nodes_of(problem), prior if evidence is None else evidence.unit)
        self.continuation = Continuation(gamma, exact=exact)
        self.descent = Descent()
        self.iteration = 0
        self.outcome: Outcome | None = None
        self.failure: str | None = None
        self.moved = False  # since it was made or restored
        self._misfit_at_begin: float | None = None
        solved = False
        if isinstance(problem, Problem):
            problem = replace(problem, weight=relaxed.quadrature.flatten())
            solved = solve_in_closed_form(model, problem.node_data(), team)
        learns = not solved and any(p.requires_grad for p in model.parameters())
        self.warm_up = None
        if learns:
            self.warm_up = WarmUp(problem, model, exact and self.arrow.formed, rough=rough, team=team)

    def _use(self, relaxed: RelaxedParts, nodes: Tensor, prior: float | Tensor) -> None:
        self.nodes = self.begun = nodes  # the damping's measure is that of the first X
        self._known: Loss | None = None  # the loss at this X and θ, where a step has found it
        self.arrow = ArrowProblem(
            relaxed, self.model, nodes, prior=prior, memory=self.memory, exact=self.exact, team=self.team
        )

    @property
    def mesh(self) -> Mesh:
        """The discretisation of this process's trajectories at this moment."""
        return self.arrow.source.mesh

    @property
    def gamma(self) -> float:
        """γ of the current level."""
        return self.continuation.gamma

    @property
    def evaluations(self) -> int:
        """Evaluations of R with its gradient in the warm-up, and eliminations since."""
        return self.descent.evaluations + (0 if self.warm_up is None else self.warm_up.evaluations)

    @property
    def prior_std(self) -> NDArray[np.float64] | None:
        """Standard deviation of each weight's prior, shape (N_θ,), where the evidence chose it."""
        if self.evidence is None:
            return None
        return self.evidence.standard_deviation(self.arrow).cpu().numpy()

    @property
    def finding(self) -> str | None:
        """What the user should know of how it ended."""
        return self.levels.finding

    @property
    def growth(self) -> float:
        """How many times as long as the longest iteration so far the next one may take, for `loop.run`."""
        if self.warm_up is None or not self.warm_up.done:
            return 1.0
        return 1.0 if self.moved else FIRST_STEP

    def held_out(self) -> Tensor | None:
        """J of the held-out trajectories at the scorer's γ, their X minimising Eq. 4 with θ fixed (Sec. 7)."""
        if self.scorer is None:
            return None
        return torch.tensor(self.scorer.score(self.model).total, dtype=torch.float64)

    def end_warm_up(self) -> None:
        """Let X move from the next step on; for a method that is not to be saved."""
        self.warm_up = None

    def step(self) -> Step:
        """One iteration: steps of the warm-up, or one Levenberg-Marquardt step; after the end nothing moves."""
        self.iteration += 1
        if self.warm_up is not None and not self.warm_up.done:
            return self._warm_up(self.warm_up)
        if self.threshold is not None:
            self.arrow.weigh(self.nodes, self.threshold)
            self._known = None
        before, gamma = self._known or self.arrow.loss(self.nodes), self.gamma
        self.moved = True
        if self.outcome is None:
            after, system = self._move(before)
            if self.outcome is None:
                J = before.total(gamma)
                gain = (J - after.total(gamma)) / J if J > 0 else 0.0
                was_closed = self.continuation.closed
                verdict = self.continuation.after(gain, after.residual, after.tail, after.misfit)
                after, goes_on = self._weigh_evidence(after, system, gamma, verdict)
                ended = verdict == "converged" and not goes_on and not self._refine()
                settled = ended or verdict == "tighten" or self.continuation.closed > was_closed
                if settled and self._fell_too_far(gamma, after):
                    ended, gamma, after = True, self.gamma, self.arrow.loss(self.nodes)
                self.outcome = "converged" if ended else None
            before = after
        total = math.nan if self.outcome == "not-finite" else before.total(gamma)
        return Step(before.residual, before.misfit, total)

    def _warm_up(self, warm_up: WarmUp) -> Step:
        value = warm_up.step()
        if warm_up.done and warm_up.share is not None:
            self.outcome = "converged"  # exact as X is, it would have to bend to obey a model across a jump of f
        if self._misfit_at_begin is None:  # X stays
            self._misfit_at_begin = self.arrow.misfit(self.nodes)
        error = self._misfit_at_begin
        return Step(value, error, self.gamma * error + value)

    def _move(self, before: Loss) -> tuple[Loss, System | None]:
        """Take a step that decreases J, and return the loss there and its system; without one X and θ stay."""
        found = self.descent.step(self.arrow, self.nodes, before, self.gamma)
        self.nodes, self._known = found.nodes, found.loss
        self.outcome, self.failure = found.failure, found.reason
        return found.loss, found.system

    def _fell_too_far(self, gamma: float, at: Loss) -> bool:
        """Go back to the level of γ that forecasts best, where this one is worse; returns whether it was."""
        levels = self.levels
        if not levels.fell_too_far(gamma, at.misfit, self.nodes, self.arrow.theta()):
            return False
        assert levels.best is not None
        self.continuation.gamma, self.nodes, self._known = levels.best.gamma, levels.best.nodes, None
        self.arrow.put_theta(levels.best.theta)
        return True

    def _weigh_evidence(self, at: Loss, system: System | None, gamma: float, verdict: Verdict) -> tuple[Loss, bool]:
        """At the end of a level let ν follow the evidence; returns the loss with it, and whether this level goes on."""
        evidence, last = self.evidence, verdict == "converged"
        damped = self.descent.state_damping > STATE_DAMPING  # X held as if the data knew more of it
        if evidence is None or system is None or verdict == "stay" or damped:
            return at, False
        if last and evidence.rounds >= MOST_ROUNDS:
            return at, False
        matters = evidence.choose(self.arrow, at, system, gamma)
        evidence.rounds += last and matters
        self._known = at._replace(penalty=self.arrow.penalty())
        return self._known, last and matters

    def _refine(self) -> bool:
        """Go on on a finer mesh where the series asks for one; returns whether it does."""
        if self.remesher is None:
            return False
        plan, relaxed, nodes = self.remesher.refine(self.arrow.relaxed, self.nodes, self.gain)
        self.gain = plan.gain
        if not plan.done:
            self._use(relaxed, nodes, self.arrow.prior)
            self.continuation.reopen()
            self.descent.trust = None
            self.levels.forget()
            if self.evidence is not None:
                self.evidence.rounds = 0
            self.refined_at, self.scorer = self.iteration, self.remesher.scorer(self.mesh)
        return not plan.done

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs beside θ and the options: X, dampings, γ, the memory of the warm-up.

        On the lead X and its mesh are those of all processes.
        """
        level = self.continuation
        progress = [self.iteration, self.evaluations, self.descent.damping, self.descent.state_damping]
        progress += [level.gamma, level.steps, level.closed, level.last_misfit]
        progress += [-1 if self.outcome is None else OUTCOMES.index(self.outcome)]
        collect = self.team.collect
        saved = {"nodes": collect(self.nodes), "progress": torch.tensor(progress, dtype=torch.float64)}
        if self.remesher is not None:
            saved |= {f"mesh.{name}": collect(v) if v.dim() else v for name, v in mesh_state(self.mesh).items()}
            saved["mesh.begun"] = collect(self.begun)
        if self.scorer is not None:
            saved["held_out.nodes"] = self.scorer.state()
        if self.descent.trust is not None:
            saved["trust"] = torch.tensor(self.descent.trust, dtype=torch.float64)
        if self.evidence is not None:
            saved |= {"prior": self.arrow.prior, "rounds": torch.tensor(self.evidence.rounds)}
        saved["gain"] = torch.tensor([*self.gain, self.refined_at], dtype=torch.float64)
        saved |= {f"levels.{k}": collect(v) if k == "nodes" else v for k, v in self.levels.state().items()}
        began = {} if self.warm_up is None else self.warm_up.state()
        return saved | {f"warm_up.{name}": value for name, value in began.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned, on a model with the θ of that moment."""
        if self.warm_up is not None:
            own = {k.removeprefix("warm_up."): v for k, v in state.items() if k.startswith("warm_up.")}
            self.warm_up.restore(own)
        if self.remesher is not None:
            mesh = mesh_from_state({k.removeprefix("mesh."): v for k, v in state.items() if k.startswith("mesh.")})
            first = self.team.before(self.mesh.trajectories)
            mesh = mesh.between(first, first + self.mesh.trajectories)
            begun = self.team.own(state["mesh.begun"], mesh.elements).clone()
            self._use(self.remesher.rebuild(self.arrow.relaxed, mesh, begun), begun, self.arrow.prior)
            self.refined_at = int(state["gain"][2])
            self.scorer = self.remesher.scorer(mesh) if self.refined_at else self.scorer
        self.nodes, self._known = self.team.own(state["nodes"], self.nodes.shape[0]).clone(), None
        if self.scorer is not None and "held_out.nodes" in state:
            self.scorer.restore(state["held_out.nodes"])
        if self.evidence is not None and "prior" in state:  # states of older versions have none
            self.arrow.prior, self.evidence.rounds = state["prior"].to(self.arrow.prior), int(state["rounds"])
        self.gain = Gain(float(state["gain"][0]), int(state["gain"][1]))
        levels = {k.removeprefix("levels."): v for k, v in state.items() if k.startswith("levels.")}
        if "nodes" in levels:
            levels["nodes"] = self.team.own(levels["nodes"], self.nodes.shape[0]).clone()
        if levels:  # states of older versions have none
            self.levels.restore(levels)
        counts, level = state["progress"].tolist(), self.continuation
        self.iteration, began = int(counts[0]), 0 if self.warm_up is None else self.warm_up.evaluations
        self.descent.evaluations = int(counts[1]) - began
        self.descent.damping, self.descent.state_damping = counts[2], counts[3]
        self.descent.trust = Trust(*state["trust"].tolist()) if "trust" in state else None
        level.gamma, level.steps, level.closed, level.last_misfit = (
            counts[4],
            int(counts[5]),
            bool(counts[6]),
            counts[7],
        )
        ended = counts[8]
        self.outcome = None if ended < 0 else OUTCOMES[int(ended)]
