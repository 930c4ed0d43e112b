"""Options of α-SNet: the tree under `state_step`, and what the relaxed problem adds to the options of `fit`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Gamma = Literal["auto"] | Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""Weight of the misfit: a number, or chosen by the noise level or held-out samples."""

Observe = dict[str, str] | list[list[float]]
"""Outputs by the state that each measures, or the matrix C of y = C x (d x n)."""


class StateStepOptions(BaseModel):
    """How the trajectories x move."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["sgd", "gauss-newton"] = Field(
        default="gauss-newton",
        description="sgd: as in the paper; gauss-newton: one damped linear solve per trajectory, no rate to tune.",
    )
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=1e-3, description="Learning rate of sgd; gauss-newton has a damping of its own instead."
    )
    steps: Annotated[int, Field(ge=1)] = Field(
        default=1, description="N_x: steps on the trajectories in each iteration (Quaglino et al. 2020, Alg. 2)."
    )


class AlphaOptions(BaseModel):
    """What α-SNet adds to the options of `fit`; every key stands at the top level of its tree."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state_step: StateStepOptions = Field(default=StateStepOptions(), description="How the trajectories move.")
    theta_steps: Annotated[int, Field(ge=1)] = Field(
        default=10, description="N_t: steps on the weights in each iteration (`theta_step.steps`)."
    )
    warm_up: Annotated[int, Field(ge=0)] = Field(
        default=60,
        description="Most iterations that move the weights alone, as δ-SNet does, while R still falls: a network that "
        "knows nothing would only pull the trajectories away from the data. 0 in the paper's preset.",
    )
    perturbation: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0,
        description="Bound of the uniform offset that each state of each trajectory starts with (0.1 in Sec. 5).",
    )
    own_descent: bool = Field(
        default=False,
        description="sgd: each trajectory descends on its own γL_b + R_b instead of its share of J, as in the paper.",
    )


ALPHA_PAPER_PRESET: dict[str, Any] = {
    "state_step": {"name": "sgd", "rate": 1e-3, "steps": 10},
    "theta_steps": 10,
    "warm_up": 0,
    "perturbation": 0.1,
    "own_descent": True,
}
"""What `--preset paper` adds for α-SNet (Quaglino et al. 2020, Sec. 5); x(t0) is free there (`x0: free`)."""

ALPHA_PAPER_ITERATIONS = 100
"""Iterations of α-SNet under the paper's preset (its Table 1a)."""
