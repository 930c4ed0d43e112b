"""Options of `snet fit`: every flag by its name, and the nested trees `model`, `theta_step`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from snet_cli.training.alpha_options import Gamma, Observe, StateStepOptions

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class ThetaStepOptions(BaseModel):
    """How the weights θ move."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["adam", "lbfgs", "lm"] = Field(
        default="lbfgs",
        description="adam: as in the paper; lbfgs: far fewer iterations where all data is one batch; lm: "
        "Levenberg-Marquardt, tens of iterations for models of up to some thousand weights on nearly exact data.",
    )
    rate: Positive = Field(default=1e-2, description="Learning rate of adam; lbfgs and lm need none.")
    steps: Count = Field(default=10, description="N_t of alpha: steps on the weights in each iteration.")


class SolverOptions(BaseModel):
    """How exactly the solver baselines integrate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rtol: Positive = Field(default=1e-7, description="Relative error per step of DoPr5.")
    atol: Positive = Field(default=1e-9, description="Absolute error per step of DoPr5.")
    max_evaluations: Count = Field(
        default=20_000, description="Evaluations of f in one solution after which the solver has failed."
    )


class FitOptions(BaseModel):
    """What `snet fit` trains, with which method, and when it stops."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Literal["paper"] | None = Field(default=None, description="paper: the settings of Quaglino et al. 2020.")
    method: Literal[
        "auto", "delta", "alpha", "joint", "bkpr-euler", "bkpr-dopri5", "adj-euler", "adj-dopri5", "anode"
    ] = Field(
        default="auto",
        description="joint: trajectories and weights together down to the exact equations; delta; alpha for sparse, "
        "noisy or partly observed data; bkpr-euler, bkpr-dopri5, adj-euler, "
        "adj-dopri5 and anode are the solver-based neighbours, to compare with; auto: joint wherever its Schur "
        "complement fits --max-memory and a step takes less than about a minute, but for hidden states that are "
        "neither velocities nor lagged inputs; then alpha, or delta where all states are measured densely and "
        "exactly.",
    )
    model: dict[str, Any] | str | None = Field(
        default=None, description="Model: a registry name, FILE.py:Class, or a tree with its options."
    )
    order: Literal["auto"] | Annotated[int, Field(ge=2, le=100)] = Field(
        default="auto", description="Polynomial order p of each element (Quaglino et al. 2020, eq. 5)."
    )
    elements: Literal["auto"] | Annotated[int, Field(ge=1, le=100_000)] = Field(
        default="auto", description="Elements on the longest trajectory; shorter ones get their share."
    )
    iterations: Count | None = Field(default=None, description="Most iterations; unset: the method's own limit.")
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0, description="δ: training stops when the residual R is at most this."
    )
    max_time: Positive | None = Field(default=None, description="Most seconds for the whole command.")
    validation: str | float | None = Field(
        default=None, description="Held-out trajectories: a file, or a fraction of the training file."
    )
    x0: Literal["known", "free"] | None = Field(
        default=None, description="Whether x(t0) is held at the file's x0; unset: known where the file has it."
    )
    scaled: bool = Field(default=True, description="Scale each state's residual by 1/rms of its derivative.")
    prior: Literal["auto"] | Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default="auto",
        description="λ of λ|θ|² beside R; auto: what noise leaves in ẋ, per equation; joint: by the evidence.",
    )
    theta_step: ThetaStepOptions = Field(default=ThetaStepOptions(), description="How the weights move.")
    solver: SolverOptions = Field(default=SolverOptions(), description="How exactly the solver baselines integrate.")
    state_step: StateStepOptions = Field(default=StateStepOptions(), description="alpha: how the trajectories move.")
    gamma: Gamma = Field(
        default="auto", description="γ of alpha, the weight of the misfit; auto: so that the misfit ends at the noise."
    )
    loss: Literal["squared", "huber"] = Field(
        default="squared", description="huber: samples far off count linearly, in step 0 and in the x-step of alpha."
    )
    observe: Observe | None = Field(
        default=None, description="Which state each output measures, {output: state}, or the matrix C of y = C x."
    )
    perturbation: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0, description="alpha: bound of the uniform offset that each state of each trajectory starts with."
    )


class EnsembleOptions(BaseModel):
    """How many models one command trains."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seeds: Annotated[int, Field(ge=2, le=1000)] | None = Field(
        default=None, description="Train N models, from --seed on, and keep the best; evaluate tells their spread."
    )
    folds: Annotated[int, Field(ge=2, le=1000)] | None = Field(
        default=None, description="Cross-validation: N models, each judged by the N-th part that it does not train on."
    )

    @property
    def wanted(self) -> bool:
        """Whether there is more than one model."""
        return self.seeds is not None or self.folds is not None


PAPER_PRESET: dict[str, Any] = {
    "order": 14,
    "elements": 1,
    "scaled": False,
    "prior": 0.0,
    "theta_step": {"name": "adam", "rate": 1e-2, "steps": 10},
    "state_step": {"name": "sgd", "rate": 1e-3, "steps": 10},
    "gamma": 3.0,
    "perturbation": 0.1,
}
"""`--preset paper`: what Quaglino et al. 2020 (Sec. 5) used; a flag given beside it wins."""

PAPER_ITERATIONS: dict[str, int] = {"delta": 480, "alpha": 100}
"""Iterations of the paper's preset by method; the solver methods take `SHOOTING_ITERATIONS`."""

SHOOTING_ITERATIONS = 1200
