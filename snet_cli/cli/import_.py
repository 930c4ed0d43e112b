"""`snet import`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from snet_cli.cli import flags
from snet_cli.cli.console import number, quoted, with_unit
from snet_cli.cli.flags import Text, flag
from snet_cli.cli.session import counted, joined, needed, open_session
from snet_cli.data.options import ImportOptions
from snet_cli.workflows.import_ import import_

Texts = list[str] | None

EXAMPLES = (
    "snet import runs/*.csv -o train.h5 --time t --states x,v --inputs u --units x=m,v=m/s",
    "snet import arm.mat -o arm.h5 --states q=Q,dq=DQ --inputs tau --hold linear --split test=71-80",
    "snet import log.csv -o yaw.h5 --states yaw=heading --angle yaw=deg --derive r=d(yaw) --window 10",
)
"""Shown at the end of the help."""


def command(
    ctx: typer.Context,
    files: Annotated[Texts, typer.Argument(metavar="FILE...", help="CSV, NPZ, MAT, or files of snet.")] = None,
    output: flags.Output = None,
    states: Annotated[Texts, flag(ImportOptions, "states", "x,y=Y")] = None,
    inputs: Annotated[Texts, flag(ImportOptions, "inputs", "u1,u2")] = None,
    time: Annotated[Text, flag(ImportOptions, "time", "t")] = None,
    by: Annotated[Text, flag(ImportOptions, "by", "COLUMN")] = None,
    units: Annotated[Texts, flag(ImportOptions, "units", "x=m,...")] = None,
    hold: Annotated[Texts, flag(ImportOptions, "hold", "zoh|linear|cubic")] = None,
    angle: Annotated[Texts, flag(ImportOptions, "angle", "yaw[=deg]")] = None,
    window: Annotated[Text, flag(ImportOptions, "window", "SECONDS")] = None,
    stride: Annotated[Text, flag(ImportOptions, "stride", "SECONDS")] = None,
    decimate: Annotated[Text, flag(ImportOptions, "decimate", "N")] = None,
    derive: Annotated[Texts, flag(ImportOptions, "derive", "v=d(q)")] = None,
    init_window: Annotated[Text, flag(ImportOptions, "init_window", "N")] = None,
    split: Annotated[Texts, flag(ImportOptions, "split", "test=71-80")] = None,
    config: flags.Config = None,
    set_: flags.Sets = None,
    max_memory: flags.MaxMemory = None,
    max_bytes: flags.MaxBytes = None,
    force: flags.Force = None,
    dry_run: flags.DryRun = None,
    show_config: flags.ShowConfig = None,
    json: flags.Json = None,
    quiet: flags.Quiet = None,
    verbose: flags.Verbose = None,
) -> None:
    """Read your own recordings and write a trajectory file.

    One file is one trajectory, unless --by or --window say otherwise; empty cells are missing samples.
    """
    session = open_session(ctx, ImportOptions)
    if session.shows_config(show_config):
        return
    needed(files[0] if files else None, "FILE", "snet import run.csv -o train.h5 --states x,v")
    result = import_(
        files or [],
        session.output("train.h5"),
        session.get(ImportOptions),
        session.common,
        force=session.run.force,
        dry_run=session.run.dry_run,
        report=session.console,
    )
    session.present(result, _lines(result), f"snet fit {quoted(session.output(''))} -o model.h5")


def _lines(result: Mapping[str, Any]) -> list[str]:
    units, missing = result["units"], result["missing"]
    lines = [
        f"{counted(result['trajectories'], 'trajectory', 'trajectories')}, {counted(result['samples'], 'sample')}, "
        f"every {number(result['sampling_interval'])} {result['time_unit']}",
        f"states {joined([with_unit(name, units) for name in result['states']])}; "
        f"inputs {joined([with_unit(name, units) for name in result['inputs']])}",
    ]
    gaps = [f"{name} {count}" for name, count in missing.items() if count]
    lines += [f"missing values: {joined(gaps)}"] if gaps else []
    if result["split"] is not None:
        lines.append("split: " + ", ".join(f"{name} {count}" for name, count in result["split"].items()))
    return lines
