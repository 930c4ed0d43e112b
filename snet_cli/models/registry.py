"""Names of the models, and which one a file's system asks for. A new model is one file, its options, one line here."""

from __future__ import annotations

import torch

from snet_cli.errors import UsageError
from snet_cli.models.base import Model, StateSpace
from snet_cli.models.linear import Linear
from snet_cli.models.mlp import Mlp
from snet_cli.models.multi_agent import MultiAgent
from snet_cli.models.options import ModelOptions
from snet_cli.models.user import UserSource, build_user_model
from snet_cli.models.vehicle import Vehicle

MODELS: dict[str, type[Model]] = {
    "linear": Linear,
    "mlp": Mlp,
    "vehicle": Vehicle,
    "multi-agent": MultiAgent,
}
"""Registry name -> class; `user` is built from the file that the command line names."""


def default_model(system: str | None) -> str:
    """The model that a file's system asks for: vehicle, multi-agent for every multi-agent-*, else mlp."""
    if system == "vehicle":
        return "vehicle"
    if system is not None and system.startswith("multi-agent"):
        return "multi-agent"
    return "mlp"


def state_space(name: str, outputs: tuple[str, ...], inputs: tuple[str, ...]) -> StateSpace:
    """The states and inputs of a model on this data.

    Raises
    ------
    UsageError
        If a structured model needs other inputs than the data has.
    """
    wanted = MODELS[name].required_space(outputs) if name in MODELS else None
    if wanted is None:
        return StateSpace(outputs, inputs)
    if sorted(wanted.inputs) != sorted(inputs):
        raise UsageError(
            f"the model '{name}' needs the states {', '.join(wanted.states)} and the inputs "
            f"{', '.join(wanted.inputs)}; the data has the outputs {', '.join(outputs)} and the inputs "
            f"{', '.join(inputs) or '(none)'}.",
            "Rename the channels on import (a=b), or choose --model mlp.",
        )
    return wanted


def build_model(
    name: str,
    options: ModelOptions,
    space: StateSpace,
    *,
    seed: int,
    dtype: torch.dtype,
    source: UserSource | None = None,
) -> Model:
    """A new model; its weights depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    if source is not None:
        return build_user_model(source, space, generator, dtype)
    return MODELS[name].build(options, space, generator, dtype)
