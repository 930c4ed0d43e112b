"""Options of `snet evaluate`: what is forecast from where, how it is integrated, what must be reached."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

PositiveTime = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Tolerance = Annotated[float, Field(gt=0, lt=1)]


def listed(value: Any) -> Any:
    """A single text as a list of one."""
    return [value] if isinstance(value, str) else value


class EvaluateOptions(BaseModel):
    """Which forecasts are made and scored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(
        default=None, description="The model file of a model of your own, FILE.py:Class; it runs only when named here."
    )
    horizon: PositiveTime | None = Field(default=None, description="Length of each forecast; unset: all that there is.")
    from_every: PositiveTime | None = Field(
        default=None, description="Start a forecast at every multiple of this; unset: one, from the first sample."
    )
    init_window: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="Samples that start a forecast, unscored; unset: what the file says."
    )
    split: Literal["train", "valid", "test"] | None = Field(
        default=None, description="Use this part of the file alone; unset: all trajectories."
    )
    integrator: Literal["dopri5", "euler"] = Field(
        default="dopri5", description="dopri5: adaptive, each trajectory its own step; euler: one step per sample."
    )
    rtol: Tolerance = Field(
        default=1e-9, description="Relative tolerance of dopri5; not below 1.2e-7 where the network is float32."
    )
    atol: Tolerance = Field(default=1e-11, description="Absolute tolerance of dopri5, times each state's scale.")
    relaxed: bool = Field(
        default=False,
        description="Score the model without solving the ODE as well: what Eq. 4 leaves on the series of the data.",
    )
    bands: bool = Field(
        default=False,
        description="Forecast 95 % bands of the noise-free outputs as well, from the confidence that joint keeps.",
    )
    plot: str | None = Field(default=None, description="Folder for pictures (PNG).")
    require: Annotated[list[str], BeforeValidator(listed)] = Field(
        default=[], description="Bound that must hold, such as 'mse<=0.02'; else exit 7. May be repeated."
    )
