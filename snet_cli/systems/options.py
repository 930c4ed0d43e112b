"""Options of `snet simulate` that every system shares; a system's own parameters are a class beside its equations."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

PositiveTime = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SimulateOptions(BaseModel):
    """How many trajectories, sampled when, and how well they are measured.

    The truth (initial states and inputs) depends on the seed and the trajectory's number alone, on none of these.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trajectories: Annotated[int, Field(ge=1, le=10**8)] = Field(default=100, description="Number of trajectories.")
    horizon: PositiveTime | None = Field(default=None, description="Length T in time; unset: the system's own.")
    samples: Annotated[int, Field(ge=2, le=10**7)] | None = Field(
        default=None, description="Samples of each trajectory; unset: the system's own number."
    )
    sampling: Literal["uniform", "random", "lobatto"] = Field(
        default="uniform", description="Where the samples lie; every choice has one at both ends."
    )
    keep: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="Share of the samples that is kept, both ends always."
    )
    noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0, description="Standard deviation of Gaussian noise, in each channel's own unit."
    )
    missing: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Share of single values that is lost."
    )
    unknown_x0: bool = Field(default=False, description="Leave the exact initial states out of the file.")
    input_horizon: PositiveTime = Field(default=10.0, description="Period of the inputs' fundamental.")
