"""`snet compare`."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Annotated, Any, get_args

import typer

from snet_cli.cli import flags
from snet_cli.cli.console import columns, number
from snet_cli.cli.flags import Switch, Text, flag
from snet_cli.cli.session import again, counted, open_session
from snet_cli.cli.signals import Interrupted
from snet_cli.errors import SnetError
from snet_cli.evaluation.comparison import ComparisonRow, table_rows
from snet_cli.workflows.compare_options import NOT_TAKEN, CompareOptions, Preset

EXAMPLES = (
    "snet compare train.h5 --test test.h5 -o comparison --preset paper --iterations 100",
    "snet compare train.h5 --test test.h5 -o comparison --methods delta,alpha --target-mse 1e-3",
    "snet compare --test test.h5 --checkpoints first.h5,second.h5 -o comparison",
    "snet compare --preset vehicle-dense --quick -o vehicle",
)
"""Shown at the end of the help."""


def command(
    ctx: typer.Context,
    train: Annotated[Text, typer.Argument(metavar="[TRAIN]", help="Trajectory file.")] = None,
    test: Annotated[Text, flag(CompareOptions, "test", "TEST")] = None,
    output: Annotated[Text, typer.Option("-o", "--output", metavar="DIR", help="Folder to write.")] = None,
    methods: Annotated[Text, flag(CompareOptions, "methods", "a,b,...")] = None,
    checkpoints: Annotated[Text, flag(CompareOptions, "checkpoints", "m1.h5,m2.h5")] = None,
    preset: Annotated[Text, flag(CompareOptions, "preset", "NAME")] = None,
    quick: Annotated[Switch, flag(CompareOptions, "quick")] = None,
    model: Annotated[Text, flag(CompareOptions, "model", "NAME|FILE.py:Class")] = None,
    iterations: Annotated[Text, flag(CompareOptions, "iterations", "N")] = None,
    target_mse: Annotated[Text, flag(CompareOptions, "target_mse", "M")] = None,
    max_time: Annotated[Text, flag(CompareOptions, "max_time", "SECONDS")] = None,
    resume: Annotated[Switch, flag(CompareOptions, "resume")] = None,
    config: flags.Config = None,
    set_: flags.Sets = None,
    seed: flags.Seed = None,
    device: flags.Device = None,
    dtype: flags.Dtype = None,
    threads: flags.Threads = None,
    max_memory: flags.MaxMemory = None,
    max_bytes: flags.MaxBytes = None,
    force: flags.Force = None,
    dry_run: flags.DryRun = None,
    show_config: flags.ShowConfig = None,
    json: flags.Json = None,
    quiet: flags.Quiet = None,
    verbose: flags.Verbose = None,
) -> None:
    """Train several methods on one file under one budget, test them, and put them side by side.

    Each runs in a process of its own; one that fails is a row that says so. Ctrl-C keeps the finished rows, and
    --resume goes on after them. Options of snet fit are taken too: --set model.hidden=[16].
    """
    presets: dict[str, dict[str, Any]] = {name: {} for name in get_args(Preset)}  # a method's own settings come later
    session = open_session(ctx, CompareOptions, presets=presets, without=NOT_TAKEN)
    if session.shows_config(show_config):
        return
    options, run = session.get(CompareOptions), session.run
    target = "comparison" if run.dry_run and run.output is None else session.output("comparison")
    from snet_cli.workflows.compare import compare

    try:
        compared = compare(
            train,
            target,
            options,
            session.common,
            force=run.force,
            dry_run=run.dry_run,
            report=session.console,
        )
    except (KeyboardInterrupt, Interrupted) as stopped:
        raise _stopped(stopped, ctx) from None
    result = compared.result
    session.present(result, _lines(result), failure=compared.failure)


def _stopped(stopped: BaseException, ctx: typer.Context) -> SnetError:
    """What is there, and how to go on."""
    error = SnetError(f"stopped by {stopped or 'SIGINT'}; the finished rows are kept.", f"Go on: {again(ctx)}")
    error.code = "interrupted"
    error.exit_code = stopped.exit_code if isinstance(stopped, Interrupted) else 130
    return error


def _lines(result: Mapping[str, Any]) -> list[str]:
    if result.get("dry_run"):
        return _plan_lines(result)
    rows = [ComparisonRow.from_json(row) for row in result["rows"]]
    messages = [f"{row.label}: {row.message}" for row in rows if row.message]
    return [*_table([list(row) for row in table_rows(rows)]), *messages]


def _table(cells: list[list[str]]) -> list[str]:
    """The table as rich draws it, as wide as it needs to be."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text as Plain

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    text = ("method", "case", "status")
    for name in cells[0]:
        table.add_column(Plain(name), justify="left" if name in text else "right", no_wrap=True)
    for row in cells[1:]:
        table.add_row(*(Plain(cell) for cell in row))
    stream = io.StringIO()
    Console(file=stream, width=1000, color_system=None).print(table)
    return [line.rstrip() for line in stream.getvalue().splitlines() if line.strip()]


def _plan_lines(result: Mapping[str, Any]) -> list[str]:
    """What would be trained, on what, and under which budget."""
    rows = [["method", "case", "iterations", "train", "test"]]
    for row in result["rows"]:
        limit = "-" if row["iterations"] is None else str(row["iterations"])
        rows.append([row["method"], row["case"] or "-", limit, row["train"] or "-", row["test"] or "-"])
    lines = [counted(len(result["rows"]), "row") + f" in {result['output']}", *columns(rows, right=False)]
    for data in result["data"]:
        shown = {key: value for key, value in data.items() if key not in ("file", "system", "seed")}
        settings = ", ".join(f"{k} {number(v) if isinstance(v, float) else v}" for k, v in shown.items())
        lines.append(f"{data['file']}: {data['system']}, seed {data['seed']}, {settings}")
    return lines
