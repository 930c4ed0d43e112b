"""Options of the learnable models: the tree under `model` in YAML and `--set`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Activation = Literal["tanh", "sin", "silu", "softplus"]
Width = Annotated[int, Field(ge=1, le=4096)]


class ModelOptions(BaseModel):
    """What every model has: its registry name."""

    model_config = ConfigDict(frozen=True, extra="forbid")


HiddenStates = Annotated[
    int,
    Field(ge=0, le=100, description="States that no output measures, named h1, h2, ...; they are estimated (alpha)."),
]


class LinearOptions(ModelOptions):
    """x' = A x + B u + c, in closed form on step 0."""

    name: Literal["linear"] = "linear"
    hidden_states: HiddenStates = 0


class VehicleOptions(ModelOptions):
    """Planar vehicle of Quaglino et al. 2020, eq. 8: one network each for J, C and d; M known."""

    name: Literal["vehicle"] = "vehicle"
    hidden: Annotated[list[Width], Field(min_length=1, max_length=1)] = Field(
        default=[32], description="Width of the hidden layer of each of the three networks."
    )
    activation: Activation = Field(default="tanh", description="Activation of the hidden layer.")


class MultiAgentOptions(ModelOptions):
    """Many vehicles under a known policy (Quaglino et al. 2020, App. B): one J shared by all agents is learned."""

    name: Literal["multi-agent"] = "multi-agent"
    hidden: Annotated[list[Width], Field(min_length=1, max_length=1)] = Field(
        default=[32], description="Width of the hidden layer of J."
    )
    activation: Activation = Field(default="tanh", description="Activation of the hidden layer.")


class MlpOptions(ModelOptions):
    """A generic network on normalised states and inputs."""

    name: Literal["mlp"] = "mlp"
    hidden: Annotated[list[Width], Field(min_length=1, max_length=8)] = Field(
        default=[32, 32], description="Widths of the hidden layers."
    )
    activation: Activation = Field(
        default="tanh",
        description="Activation of the hidden layers; unset where there are hidden_states: softplus, which goes on "
        "linearly where a state leaves what training saw.",
    )
    angles: list[str] = Field(default=[], description="States that the network sees as sine and cosine.")
    second_order: dict[str, str] = Field(
        default={}, description="Pairs q: v with q' = v given, not learned; v may be unmeasured."
    )
    exclude: list[str] = Field(default=[], description="States and inputs that the network must not see.")
    hidden_states: HiddenStates = 0
    input_lag: Literal["none", "shared", "each"] = Field(
        default="none",
        description="Whether inputs act through a first-order lag s' = (u - s) / tau, of which the network sees s "
        "instead of u: one tau for all inputs, or one each; learned from five sampling intervals on (joint, alpha).",
    )
    time: bool = Field(default=False, description="Whether the network sees t, counted from the trajectory's start.")

    @model_validator(mode="before")
    @classmethod
    def _activation_of_hidden_states(cls, tree: Any) -> Any:
        # a hidden state is free to leave the range of training, where tanh saturates: on the cascaded tanks the
        # forecast of the level is then 0.3 to 0.8 V off, while softplus keeps all of five seeds below 0.31 V
        if isinstance(tree, dict) and tree.get("hidden_states") and "activation" not in tree:
            return {**tree, "activation": "softplus"}
        return tree


class UserOptions(ModelOptions):
    """The user's own torch module, named on the command line as FILE.py:Class."""

    name: Literal["user"] = "user"
    hidden_states: HiddenStates = 0


GenericOptions = LinearOptions | MlpOptions | UserOptions
"""Models that bring no states of their own."""

MODEL_OPTIONS: dict[str, type[ModelOptions]] = {
    "linear": LinearOptions,
    "mlp": MlpOptions,
    "vehicle": VehicleOptions,
    "multi-agent": MultiAgentOptions,
    "user": UserOptions,
}
"""Registry name of a model -> its options."""
