"""Every ground truth by name, and what `snet simulate --list` says of it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from snet_cli.errors import UsageError
from snet_cli.systems import classic, multi_agent, vehicle
from snet_cli.systems.system import System, SystemParameters

SYSTEMS: Mapping[str, System[Any]] = {
    system.name: system
    for system in (
        vehicle.VEHICLE,
        multi_agent.MULTI_AGENT,
        multi_agent.MULTI_AGENT_TEST,
        multi_agent.MULTI_AGENT_GAINS,
        classic.PENDULUM,
        classic.DUFFING,
        classic.VAN_DER_POL,
        classic.LOTKA_VOLTERRA,
        classic.CASCADED_TANKS,
    )
}
"""Registry name -> system."""


class ParameterInfo(NamedTuple):
    """A key of `--set`, its default, and what it means."""

    name: str
    default: float | int | bool
    description: str


class SystemInfo(NamedTuple):
    """One entry of `snet simulate --list`."""

    name: str
    title: str
    states: tuple[str, ...]
    inputs: tuple[str, ...]
    units: Mapping[str, str]
    horizon: float
    samples: int
    parameters: tuple[ParameterInfo, ...]


def get_system(name: str) -> System[Any]:
    """The system of this name.

    Raises
    ------
    UsageError
        With the nearest name, if there is none.
    """
    if name in SYSTEMS:
        return SYSTEMS[name]
    near = difflib.get_close_matches(name, SYSTEMS, n=1, cutoff=0.4)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    raise UsageError(f"there is no system '{name}'.", f"{hint}Choose one of {', '.join(SYSTEMS)}.")


def system_parameters(system: System[Any], values: Mapping[str, Any] | SystemParameters) -> SystemParameters:
    """The system's parameters with these values, validated.

    Raises
    ------
    UsageError
        Naming the parameter, and the nearest one where it does not exist.
    """
    if isinstance(values, SystemParameters):
        values = values.model_dump()
    known = system.parameters.model_fields
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.4)
            hint = f"Did you mean '{near[0]}'? " if near else ""
            raise UsageError(f"{system.name} has no parameter '{key}'.", f"{hint}It has {', '.join(known)}.")
    try:
        parameters: SystemParameters = system.parameters(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "parameters"
        raise UsageError(
            f"{system.name}: parameter {name} = {first.get('input')!r}: {first['msg']}.", "See 'snet simulate --list'."
        ) from None
    return parameters


def list_systems() -> tuple[SystemInfo, ...]:
    """Names, channels, defaults and parameters of all systems; needs no torch."""
    return tuple(_describe(system) for system in SYSTEMS.values())


def _describe(system: System[Any]) -> SystemInfo:
    channels = system.channels(system.parameters())
    parameters = tuple(
        ParameterInfo(name, field.default, field.description or "")
        for name, field in system.parameters.model_fields.items()
    )
    return SystemInfo(
        system.name,
        system.title,
        channels.states,
        channels.inputs,
        channels.units,
        system.horizon,
        system.samples,
        parameters,
    )
