"""`snet simulate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from snet_cli.cli import flags
from snet_cli.cli.console import columns, number, quoted
from snet_cli.cli.flags import Switch, Text, flag
from snet_cli.cli.session import counted, joined, needed, open_session, working_together
from snet_cli.systems.options import SimulateOptions
from snet_cli.systems.registry import get_system
from snet_cli.workflows.simulate import simulate, systems

EXAMPLES = (
    "snet simulate vehicle -o train.h5",
    "snet simulate vehicle -o test.h5 --seed 1 --horizon 100 --samples 1000",
    "snet simulate vehicle -o hard.h5 --noise 0.05 --keep 0.25 --set harmonics=3",
    "snet simulate --list",
)
"""Shown at the end of the help."""


def command(
    ctx: typer.Context,
    system: Annotated[Text, typer.Argument(metavar="SYSTEM", help="Name of the system; --list shows all.")] = None,
    output: flags.Output = None,
    trajectories: Annotated[Text, flag(SimulateOptions, "trajectories", "N")] = None,
    horizon: Annotated[Text, flag(SimulateOptions, "horizon", "T")] = None,
    samples: Annotated[Text, flag(SimulateOptions, "samples", "K")] = None,
    sampling: Annotated[Text, flag(SimulateOptions, "sampling", "uniform|random|lobatto")] = None,
    keep: Annotated[Text, flag(SimulateOptions, "keep", "SHARE")] = None,
    noise: Annotated[Text, flag(SimulateOptions, "noise", "STD")] = None,
    missing: Annotated[Text, flag(SimulateOptions, "missing", "SHARE")] = None,
    unknown_x0: Annotated[Switch, flag(SimulateOptions, "unknown_x0")] = None,
    input_horizon: Annotated[Text, flag(SimulateOptions, "input_horizon", "T")] = None,
    list_: Annotated[Switch, typer.Option("--list", help="Show all systems, or one with its parameters.")] = None,
    config: flags.Config = None,
    set_: flags.Sets = None,
    seed: flags.Seed = None,
    device: flags.Device = None,
    threads: flags.Threads = None,
    max_memory: flags.MaxMemory = None,
    force: flags.Force = None,
    dry_run: flags.DryRun = None,
    show_config: flags.ShowConfig = None,
    json: flags.Json = None,
    quiet: flags.Quiet = None,
    verbose: flags.Verbose = None,
) -> None:
    """Integrate a ground-truth system and write a trajectory file.

    The truth depends on the seed alone: noise, gaps and sampling change what is measured, never what happens.
    """
    if list_:
        shown = systems(system)
        ctx.obj.result({"command": "simulate", "systems": shown}, _listing(shown, details=system is not None))
        return
    parameters = [] if system is None else [get_system(system).parameters]
    session = open_session(ctx, SimulateOptions, *parameters)
    if session.shows_config(show_config):
        return
    name = needed(system, "SYSTEM", "snet simulate vehicle -o train.h5")
    with working_together(session) as team:
        result = simulate(
            name,
            session.output("train.h5"),
            session.get(SimulateOptions),
            session.get(parameters[0]),
            session.common,
            force=session.run.force,
            dry_run=session.run.dry_run,
            report=session.console,
            team=team,
        )
    session.present(result, _lines(result), f"snet fit {quoted(session.output(''))} -o model.h5")


def _lines(result: Mapping[str, Any]) -> list[str]:
    system = result["system"]["name"]
    outcomes = ", ".join(f"{count} {label}" for label, count in result.get("outcomes", {"planned": 0}).items() if count)
    kept = "" if result["keep"] == 1 else f", of which {result['keep']:g} kept"
    return [
        f"{system}: {counted(result['trajectories'], 'trajectory', 'trajectories')}"
        + (f" ({outcomes})" if outcomes else "")
        + f", {result['samples']} samples each{kept}, T = {number(result['horizon'])} s, seed {result['seed']}",
        f"states {joined(result['states'])}; inputs {joined(result['inputs'])}",
    ]


def _listing(shown: Sequence[Mapping[str, Any]], *, details: bool) -> list[str]:
    if details:
        one = shown[0]
        rows = [["parameter", "default", "meaning"]]
        rows += [[key, f"{p['default']}", p["description"]] for key, p in one["parameters"].items()]
        head = [
            f"{one['name']}: {one['title']}",
            f"states {joined(one['states'])}; inputs {joined(one['inputs'])}; "
            f"horizon {number(one['horizon'])} s, {one['samples']} samples",
        ]
        return head + columns(rows, right=False)
    rows = [["system", "horizon", "samples", "states", "inputs", "title"]]
    for one in shown:
        sizes = [number(one["horizon"]), str(one["samples"]), str(len(one["states"])), str(len(one["inputs"]))]
        rows.append([one["name"], *sizes, one["title"]])
    return [*columns(rows, right=False), "Parameters of one system: snet simulate SYSTEM --list"]
