"""`snet simulate`: a ground-truth system -> trajectory file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from snet_cli.data.options import CommonOptions
from snet_cli.data.outputs import check_output
from snet_cli.distributed import ALONE, Team
from snet_cli.systems.options import SimulateOptions
from snet_cli.systems.registry import get_system, list_systems
from snet_cli.systems.system import SystemParameters
from snet_cli.workflows.provenance import history_line, provenance
from snet_cli.workflows.reporter import Reporter, Silent

WIDTH = 30
"""Numbers per trajectory that one evaluation of a ground truth touches, roughly: decides between one and all cores."""


def simulate(
    system: str,
    output: str,
    options: SimulateOptions | None = None,
    parameters: SystemParameters | None = None,
    common: CommonOptions | None = None,
    *,
    force: bool = False,
    dry_run: bool = False,
    report: Reporter | None = None,
    team: Team = ALONE,
) -> dict[str, Any]:
    """Integrate a system, sample and disturb it, and write the trajectory file.

    Parameters
    ----------
    system : str
        Registry name: ``"vehicle"``.
    output : str
        Path; "-" writes to stdout.
    parameters : SystemParameters, optional
        The system's own parameters; by default its own defaults.
    force : bool
        Overwrite an existing output.
    dry_run : bool
        Only check, and return the plan.
    team : Team
        The processes that share the trajectories; the lead writes.

    Returns
    -------
    dict
        What was simulated, JSON-able.

    Raises
    ------
    SnetError
        Any of the tree; nothing is written then.
    """
    options, common, report = options or SimulateOptions(), common or CommonOptions(), report or Silent()
    known = get_system(system)
    parameters = parameters or known.parameters()
    options = options.model_copy(
        update={"horizon": options.horizon or known.horizon, "samples": options.samples or known.samples}
    )
    channels = known.channels(parameters)
    plan = {
        "command": "simulate",
        "system": {"name": system, **parameters.model_dump(mode="json")},
        **options.model_dump(mode="json"),
        "states": list(channels.states),
        "inputs": list(channels.inputs),
        "seed": common.seed,
    }
    check_output(output, force)
    if dry_run:
        return {**plan, "dry_run": True}
    outcomes, sha256 = _simulated(system, output, options, parameters, common, force, report, team)
    return {**plan, "outcomes": outcomes, "sha256": sha256, "output": output}


def systems(name: str | None = None) -> list[dict[str, Any]]:
    """What `snet simulate --list` shows, JSON-able; of one system where a name is given.

    Raises
    ------
    UsageError
        If there is no system of this name.
    """
    wanted = None if name is None else get_system(name).name
    return [
        {
            **info._asdict(),
            "parameters": {p.name: {"default": p.default, "description": p.description} for p in info.parameters},
        }
        for info in list_systems()
        if wanted in (None, info.name)
    ]


def _simulated(
    system: str,
    output: str,
    options: SimulateOptions,
    parameters: SystemParameters,
    common: CommonOptions,
    force: bool,
    report: Reporter,
    team: Team,
) -> tuple[dict[str, int], str]:
    """Outcomes of the integration, and the sha256 of the file that was written."""
    import torch  # 1.4 s, which `--list` and a usage error need not wait for

    from snet_cli.data.trajectory_file import save_trajectories
    from snet_cli.simulation.simulate import simulate as integrated
    from snet_cli.workflows import memory
    from snet_cli.workflows.resources import choose_device, set_threads
    from snet_cli.workflows.simulate_slices import is_large, write_simulation

    states = len(get_system(system).channels(parameters).states)
    size = memory.of_simulation(options.trajectories, options.samples or 1, states)
    large = output != "-" and is_large(options, states)
    if not large:
        memory.require_memory("the simulation", size, common)
    set_threads(common.threads, options.trajectories * WIDTH, team.place.local_size)
    device = choose_device(common.device, team.place)
    record = provenance(
        "simulate",
        {
            "system": system,
            **parameters.model_dump(mode="json"),
            **options.model_dump(mode="json"),
            "seed": common.seed,
            "device": device.type,
            "threads": torch.get_num_threads(),
        },
    )
    if large:
        return write_simulation(system, output, options, parameters, common, record, force, report, device, team)
    simulation = integrated(
        system,
        parameters,
        **options.model_dump(),
        seed=common.seed,
        device=device,
        should_stop=report.should_stop,
        team=team,
    )
    for note in simulation.notes:
        report.note(note)
    data = replace(simulation.trajectories, provenance=record, history=history_line(record))
    return dict(simulation.outcomes), save_trajectories(output, data, force) if team.is_lead else ""
