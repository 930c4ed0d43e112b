"""α-SNet from the set-up: its mesh, γ, and what scores it on held-out trajectories."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.trajectories import Trajectories
from snet_cli.distributed import ALONE, Team
from snet_cli.models.base import Model
from snet_cli.spectral.fitting import channel_scales
from snet_cli.training.alpha import LEAST_WARM_UP, Alpha
from snet_cli.training.alpha_mesh import refine_for_alpha
from snet_cli.training.alpha_options import ALPHA_PAPER_ITERATIONS, AlphaOptions
from snet_cli.training.gamma import NoiseLevelGamma, SampleCounts, estimated_noise
from snet_cli.training.gamma_search import GammaPlan, plan_gamma, search_gamma
from snet_cli.training.loop import HELD_OUT_EVERY
from snet_cli.training.method_choice import predicts_exactly, samples_per_unknown
from snet_cli.training.options import FitOptions
from snet_cli.training.problem import Problem
from snet_cli.training.relaxed import RelaxedProblem, misfit, nodes_of
from snet_cli.training.relaxed_data import channel_scale, known_noise, known_start_mask, relax
from snet_cli.training.relaxed_score import REFERENCE_GAMMA, RelaxedScorer
from snet_cli.training.robust import as_tensor
from snet_cli.training.starts import free_states
from snet_cli.training.step_zero import StepZero
from snet_cli.workflows.held_out import HeldOut
from snet_cli.workflows.multi_start import HIDDEN_PRIOR, Begun, begin_with_hidden_states
from snet_cli.workflows.training_plan import (
    Ingredients,
    MethodEntry,
    Training,
    iteration_limit,
    look_every,
    problem_of,
    relaxed_rule,
    validation_of,
)
from snet_cli.workflows.training_setup import STREAM_PERTURBATION, fit_step_zero, stream

FloatArray = NDArray[np.float64]

ALPHA_ITERATIONS = 200
"""Iterations of α-SNet outside the preset: its loss has settled by then."""


SCORE_COST = 2.0
"""Iterations that scoring as many elements as are trained on takes at most; on the vehicle 1.1 (one or two x-steps)."""


def _iterations(options: FitOptions) -> int:
    return ALPHA_PAPER_ITERATIONS if options.preset == "paper" else ALPHA_ITERATIONS


@dataclass(frozen=True)
class _Prepared:
    """What every α-SNet of a training begins with, whatever its γ, its model and its start.

    Attributes
    ----------
    parts : Ingredients
    zero : StepZero
        On the mesh of the training.
    problem, relaxed : Problem, RelaxedProblem
        Of all trajectories.
    channels : ndarray, shape (d,)
        c of L.
    stated, estimated : ndarray, shape (d,), or None
        Noise levels: the file's, and step 0's.
    paper, free, several : bool
        Whether the preset is the paper's, x(t0) free, and hidden states want several starts.
    """

    parts: Ingredients
    zero: StepZero
    problem: Problem
    relaxed: RelaxedProblem
    channels: FloatArray
    stated: FloatArray | None
    estimated: FloatArray | None
    paper: bool
    free: bool
    several: bool

    @classmethod
    def of(cls, parts: Ingredients) -> _Prepared:
        """The relaxed problem on a mesh as fine as R can hold it, its misfit weighed by the noise."""
        options, setup, data = parts.options, parts.setup, parts.data
        paper = options.preset == "paper"
        free = options.x0 == "free" or (options.x0 is None and paper)  # Alg. 2 prints x(t0) free
        exact = is_exact(setup.step_zero, data.train)
        zero = parts.team.once(lambda team: refined(parts, exact))
        problem = parts.team.once(lambda team: problem_of(parts, data.train, zero))
        stated = known_noise(data.train.noise_std, setup.layout.outputs)
        estimated = _estimated_noise(parts, exact)
        weighing = estimated if stated is None and not exact else stated
        channels = channel_scale(data.train.outputs, weighing, scaled=options.scaled)
        known = None if free else known_start_mask(data.train, setup.layout.states)[0]
        relaxed = parts.team.once(lambda team: relax(problem, data.train, channels, known_start=known))
        several = bool(free_states(setup.layout)) and not paper
        return cls(parts, zero, problem, relaxed, channels, stated, estimated, paper, free, several)

    @property
    def options(self) -> AlphaOptions:
        """Those of the method itself."""
        options = self.parts.options
        return AlphaOptions(
            state_step=options.state_step,
            theta_steps=options.theta_step.steps,
            perturbation=options.perturbation,
            warm_up=0 if self.paper else LEAST_WARM_UP if self.several else AlphaOptions().warm_up,
            own_descent=self.paper,
        )

    @property
    def automatic(self) -> bool:
        """Whether λ follows the noise."""
        return self.parts.options.prior == "auto" and not self.several

    @property
    def prior(self) -> float:
        """λ at first."""
        asked = self.parts.options.prior
        return asked if asked != "auto" else HIDDEN_PRIOR if self.several else 0.0

    @property
    def seed(self) -> int:
        """Of the perturbation."""
        return stream(self.parts.common.seed, STREAM_PERTURBATION)

    def make(
        self,
        problem: Problem,
        model: Model,
        gamma: float | NoiseLevelGamma,
        held_out: RelaxedScorer | None = None,
        noise: float = 0.0,
        team: Team = ALONE,
    ) -> Alpha:
        """The method with a γ and a model from a start, on the trajectories of one process of a team."""
        parts, zero, of_team = self.parts, self.zero, team.size > 1
        return Alpha(
            parts.own_problem(problem) if of_team else problem,
            replace(parts.own_relaxed(self.relaxed) if of_team else self.relaxed, scale=problem.scale),
            model,
            self.options,
            parts.options.theta_step,
            gamma=gamma,
            held_out=held_out,
            threshold=None if zero.threshold is None else as_tensor(zero.threshold, parts.device),
            prior=self.prior,
            noise=noise,
            seed=self.seed,
            team=team,
        )

    def plan(self) -> GammaPlan:
        """γ, where it is not chosen by several starts."""
        parts, noise = self.parts, self.parts.setup.step_zero.noise
        return plan_gamma(
            parts.options.gamma,
            SampleCounts.of(self.relaxed),
            float(misfit(self.relaxed, nodes_of(self.problem)).sum()),
            stated=self.stated,
            estimated=self.estimated,
            search=lambda: search_gamma(
                parts.own_problem(self.problem),
                parts.own_relaxed(self.relaxed),
                parts.setup.trained.model,
                self.options,
                parts.options.theta_step,
                prior=self.prior,
                noise=mean_square(noise / self.channels) if self.automatic else 0.0,
                seed=self.seed,
                team=parts.team,
            ),
        )


def _build(parts: Ingredients) -> Training:
    """α-SNet: the samples' noise sets γ, and the mesh is as fine as R can hold it."""
    prepared = _Prepared.of(parts)
    options, team, model, zero = parts.options, parts.team, parts.setup.trained.model, prepared.zero
    begun: Begun | None = None
    problem = prepared.problem
    if prepared.several:
        begun, reason = team.once(lambda one: begin_with_hidden_states(replace(parts, team=one), zero, prepared.make))
        problem, plan = begun.problem, GammaPlan(begun.gamma, reason)
        model.load_state_dict(begun.model.state_dict())
    else:
        plan = prepared.plan()
    gamma = REFERENCE_GAMMA if isinstance(plan.gamma, NoiseLevelGamma) else plan.gamma
    rule = relaxed_rule(parts, problem, gamma, free=prepared.free)
    rule = replace(rule, channel_scale=tuple(prepared.channels.tolist()))
    validation = validation_of(parts, rule)
    scorer = None if validation is None else validation.scorer(team)
    method = prepared.make(problem, model, plan.gamma, scorer, plan.noise * prepared.automatic, team)
    if begun is not None and begun.state:
        method.restore(begun.state)  # of all processes, each of which trained on everything; it scored no held-out data
    return Training(
        method,
        rule,
        iteration_limit(options, ALPHA),
        mesh=zero.mesh,
        notes=() if prepared.several else (plan.reason,),
        choices=(plan.reason,) if prepared.several else (),
        settled={} if begun is None else begun.settled,
        validation=validation,
        look_every=HELD_OUT_EVERY if validation is None else look_every(_cost_of_score(validation, zero)),
        team=team,
    )


ALPHA = MethodEntry(_build, _iterations)


def _estimated_noise(parts: Ingredients, exact: bool) -> FloatArray | None:
    """The noise that step 0 shows, where it is exact or the data dense; else None."""
    zero, outputs = parts.setup.step_zero, parts.data.train.outputs
    if exact:
        return zero.noise
    ratio = float(samples_per_unknown(zero.mesh, parts.data.train).min())
    return estimated_noise(zero.noise, ratio, channel_scales(outputs)[1], zero.condition)


def mean_square(errors: FloatArray) -> float:
    """Of held-out errors in units of c; 1, as if nothing were known, where none was held out."""
    return float(np.mean(errors**2)) if np.isfinite(errors).all() else 1.0


def _cost_of_score(validation: HeldOut, zero: StepZero) -> float:
    """Iterations that a score costs."""
    return SCORE_COST * validation.problem.mesh.elements / zero.mesh.elements


def is_exact(zero: StepZero, data: Trajectories) -> bool:
    """Whether step 0 predicts held-out samples as well as the truth would."""
    return predicts_exactly(zero.noise, channel_scales(data.outputs)[1])


def refined(parts: Ingredients, exact: bool) -> StepZero:
    """Step 0 on a mesh as fine as the samples allow: R holds what they leave open, so every element counts."""
    options, setup, data = parts.options, parts.setup, parts.data.train
    zero, mesh = setup.step_zero, setup.step_zero.mesh
    if "auto" in (options.order, options.elements):
        order, elements = refine_for_alpha(
            mesh.basis.order,
            mesh.elements_of_longest,
            int(data.row_size.max()),
            exact=exact,
            hidden=bool(free_states(setup.layout)),
        )
        chosen = {"order": order, "elements": elements}
        fixed = options.model_copy(update={k: v for k, v in chosen.items() if getattr(options, k) == "auto"})
        zero = fit_step_zero(fixed, parts.common, data, setup.choice, setup.layout)
    return replace(zero, counts=np.ones_like(zero.counts))
