"""`snet evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from snet_cli.cli import flags
from snet_cli.cli.console import columns, number, quoted
from snet_cli.cli.flags import Text, flag
from snet_cli.cli.session import counted, needed, open_session, working_together
from snet_cli.evaluation.options import EvaluateOptions

EXAMPLE = "snet evaluate model.h5 test.h5"

EXAMPLES = (
    "snet evaluate model.h5 test.h5 --plot figures",
    "snet evaluate model.h5 test.h5 -o forecast.csv --horizon 1 --from-every 2",
    "snet evaluate model.h5 test.h5 --bands --plot figures",
    "snet evaluate model.h5 test.h5 --json --require 'mse<=0.02'",
)
"""Shown at the end of the help."""


def command(
    ctx: typer.Context,
    model_file: Annotated[Text, typer.Argument(metavar="MODEL", help="Model from snet fit.")] = None,
    test: Annotated[Text, typer.Argument(metavar="TEST", help="Trajectory file; - is stdin.")] = None,
    output: Annotated[
        Text, typer.Option("-o", "--output", metavar="FORECAST.h5|.csv", help="Forecast to write; - is stdout.")
    ] = None,
    model: Annotated[Text, flag(EvaluateOptions, "model", "FILE.py:Class")] = None,
    horizon: Annotated[Text, flag(EvaluateOptions, "horizon", "H")] = None,
    from_every: Annotated[Text, flag(EvaluateOptions, "from_every", "S")] = None,
    init_window: Annotated[Text, flag(EvaluateOptions, "init_window", "N")] = None,
    split: Annotated[Text, flag(EvaluateOptions, "split", "train|valid|test")] = None,
    integrator: Annotated[Text, flag(EvaluateOptions, "integrator", "dopri5|euler")] = None,
    rtol: Annotated[Text, flag(EvaluateOptions, "rtol", "TOL")] = None,
    atol: Annotated[Text, flag(EvaluateOptions, "atol", "TOL")] = None,
    relaxed: Annotated[flags.Switch, flag(EvaluateOptions, "relaxed")] = None,
    bands: Annotated[flags.Switch, flag(EvaluateOptions, "bands")] = None,
    plot: Annotated[Text, flag(EvaluateOptions, "plot", "DIR")] = None,
    require: Annotated[list[str] | None, flag(EvaluateOptions, "require", "'mse<=0.02'")] = None,
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
    """Forecast the trajectories of a file with a model, and score the forecast.

    Each forecast starts from what is known at its start and sees no later sample; --require makes it a test.
    """
    session = open_session(ctx, EvaluateOptions)
    if session.shows_config(show_config):
        return
    source, data = needed(model_file, "MODEL", EXAMPLE), needed(test, "TEST", EXAMPLE)
    options, run = session.get(EvaluateOptions), session.run
    target = None if run.output is None else session.output("forecast.h5")
    from snet_cli.workflows.evaluate import evaluate  # torch: 1.4 s that a usage error need not wait for
    from snet_cli.workflows.verdict import verdict

    with working_together(session) as team:
        result = evaluate(
            source,
            data,
            target,
            options,
            session.common,
            force=run.force,
            dry_run=run.dry_run,
            report=session.console,
            team=team,
        )
    failure = None if run.dry_run else verdict(result, options.require)
    following = f"snet info {quoted(target)}" if target and not target.lower().endswith(".csv") else ""
    session.present(result, _lines(result), following, failure)


def _lines(result: Mapping[str, Any]) -> list[str]:
    if result.get("dry_run"):
        return [f"{key}: {value}" for key, value in result.items() if key not in ("command", "dry_run")]
    scores = ("mse", "rmse", "nrmse", "fit_percent", "max_abs")
    rows = [["channel", "mse", "rmse", "nrmse", "fit %", "max |e|"]]
    rows += [[name, *(number(one.get(key)) for key in scores)] for name, one in result["channels"].items()]
    rows += [["all", *(number(result.get(key)) for key in scores)]]
    start, truth = result["initial_state"], result["mse_true"]
    lines = [
        f"{counted(result['windows'], 'forecast')} over {number(result['horizon'])}, {result['diverged']} diverged; "
        f"started from {start if isinstance(start, str) else ', '.join(f'{k}: {v}' for k, v in dict(start).items())}",
        *columns(rows),
    ]
    lines += [] if truth is None else [f"mse against the truth: {number(truth)}"]
    if (ensemble := result["ensemble"]) is not None:
        lines.append(
            f"{ensemble['members']} models: mse {', '.join(number(mse) for mse in ensemble['mse'])}; their mean "
            f"{number(ensemble['mean_mse'])}"
        )
        differ = (f"{name} {number(value)}" for name, value in ensemble["spread"].items())
        lines.append(f"root mean square spread between them: {', '.join(differ)}")
    if (relaxed := result["relaxed"]) is not None:
        lines.append(
            f"without integration (relaxed): total {number(relaxed['total'])}, residual {number(relaxed['residual'])}, "
            f"misfit {number(relaxed['misfit'])}; mse of the rollout {number(result['mse'])}"
        )
    return lines + ([] if result["bands"] is None else _band_lines(result["bands"]))


def _band_lines(bands: Mapping[str, Any]) -> list[str]:
    rows = [["95 % band", "mean width", "coverage"]]
    rows += [[name, number(one["mean_width"]), number(one["coverage"])] for name, one in bands["channels"].items()]
    held = "nothing to compare the bands with"
    if bands["against"] is not None:
        what = {"truth": "the truth", "measurements": "the measurements, with noise"}[bands["against"]]
        held = f"bands hold {number(bands['coverage'])} of {what}"
    endless = f"; {counted(bands['unbounded'], 'value')} without a finite band" if bands["unbounded"] else ""
    return [*columns(rows), held + endless]
