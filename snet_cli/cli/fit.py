"""`snet fit`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from snet_cli.cli import flags
from snet_cli.cli.console import columns, duration, number, quoted
from snet_cli.cli.flags import Switch, Text, flag
from snet_cli.cli.session import ResumeOptions, RunOptions, again, counted, needed, open_session, working_together
from snet_cli.cli.signals import Interrupted, finishing_first
from snet_cli.errors import SnetError
from snet_cli.training.options import PAPER_PRESET, EnsembleOptions, FitOptions

EXAMPLE = "snet fit train.h5 -o model.h5"

EXAMPLES = (
    "snet fit train.h5 -o model.h5",
    "snet fit train.h5 -o model.h5 --method delta --preset paper --json",
    "snet fit train.h5 -o model.h5 --model mlp --set model.hidden=[16] --validation 0.2",
    "snet fit train.h5 -o model.h5 --set 'model.second_order={q: v}' --set 'model.angles=[q]'",
)
"""Shown at the end of the help."""


def command(
    ctx: typer.Context,
    train: Annotated[Text, typer.Argument(metavar="TRAIN", help="Trajectory file; - is stdin.")] = None,
    output: flags.Output = None,
    validation: Annotated[Text, flag(FitOptions, "validation", "FILE|FRACTION")] = None,
    preset: Annotated[Text, flag(FitOptions, "preset", "paper")] = None,
    method: Annotated[Text, flag(FitOptions, "method", "NAME")] = None,
    model: Annotated[Text, flag(FitOptions, "model", "NAME|FILE.py:Class")] = None,
    order: Annotated[Text, flag(FitOptions, "order", "auto|P")] = None,
    elements: Annotated[Text, flag(FitOptions, "elements", "auto|E")] = None,
    gamma: Annotated[Text, flag(FitOptions, "gamma", "auto|G")] = None,
    iterations: Annotated[Text, flag(FitOptions, "iterations", "N")] = None,
    tolerance: Annotated[Text, flag(FitOptions, "tolerance", "δ")] = None,
    max_time: Annotated[Text, flag(FitOptions, "max_time", "SECONDS")] = None,
    metrics: Annotated[Text, flag(RunOptions, "metrics", "FILE.csv")] = None,
    checkpoint_every: Annotated[Text, flag(ResumeOptions, "checkpoint_every", "60s|100it")] = None,
    resume: Annotated[Switch, flag(ResumeOptions, "resume")] = None,
    seeds: Annotated[Text, flag(EnsembleOptions, "seeds", "N")] = None,
    folds: Annotated[Text, flag(EnsembleOptions, "folds", "N")] = None,
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
) -> int:
    """Train a model of x' = f(t, x, u) on a trajectory file, without integrating it.

    Ctrl-C ends training after the current step and writes the model so far; a second one leaves at once. Whatever ends
    a run, the same command with --resume goes on from the state beside the output (FILE.resume).
    """
    session = open_session(ctx, FitOptions, ResumeOptions, EnsembleOptions, presets={"paper": PAPER_PRESET})
    if session.shows_config(show_config):
        return 0
    source, run = needed(train, "TRAIN", EXAMPLE), session.run
    target = "-" if run.dry_run and run.output is None else session.output("model.h5")
    kept = session.get(ResumeOptions)
    from snet_cli.workflows.fit import fit  # torch: 1.4 s that a usage error need not wait for
    from snet_cli.workflows.resources import process_started

    with working_together(session) as team, finishing_first() as stop:
        session.console.stop = stop
        try:
            result = fit(
                source,
                target,
                session.get(FitOptions),
                session.common,
                force=run.force,
                dry_run=run.dry_run,
                metrics=run.metrics,
                # the launcher has started all processes anew
                resume=kept.resume or (team.place.restarts > 0 and target != "-"),
                checkpoint_every=kept.checkpoint_every,
                report=session.console,
                started=process_started(),
                team=team,
                ensemble=session.get(EnsembleOptions),
            )
        except Interrupted as interruption:
            if stop.awaited and target != "-":
                raise _stopped(interruption, ctx) from None
            raise
    stopped = result.get("status") == "stopped"
    session.present(result, _lines(result), again(ctx) if stopped else f"snet evaluate {quoted(target)} test.h5")
    return stop.exit_code if stopped else 0


def _stopped(interruption: Interrupted, ctx: typer.Context) -> SnetError:
    """A run that was left at once: its state is on the disk."""
    error = SnetError(f"stopped by {interruption}; the state of the run is kept.", f"Go on: {again(ctx)}")
    error.code, error.exit_code = "interrupted", interruption.exit_code
    return error


ENDINGS = {
    "converged": "converged after {}",
    "iterations": "ended at the limit of {}",
    "max-time": "ended at the time limit after {}",
    "stopped": "stopped after {}",
    "diverged": "diverged after {}; the last finite model was kept",
}
"""What a status means, in words."""


def _lines(result: Mapping[str, Any]) -> list[str]:
    if result.get("dry_run"):
        return _plan_lines(result)
    loss, validation = result["loss"], result["validation"]
    ending = ENDINGS[result["status"]].format(counted(result["iterations"], "iteration"))
    lines = [
        f"{result['method']}, {result['model']} with {counted(result['parameters'], 'parameter')}, "
        f"order {result['order']}, {counted(result['elements'], 'element')}",
        f"{ending}, {number(result['ms_per_iteration'])} ms each; {duration(result['seconds'])} in all",
        f"residual {number(loss['residual'])}, misfit {number(loss['misfit'])}, total {number(loss['total'])}",
        f"train mse {number(result['train_mse'])} ({result['train_diverged']} diverged)",
    ]
    if (ensemble := result.get("ensemble")) is not None:
        lines.append(_ensemble_line(ensemble))
    if validation is not None:
        lines.append(
            f"validation mse {number(validation['mse'])}, relaxed {number(validation['relaxed'])}, "
            f"best at iteration {validation['best_iteration']}"
        )
    return lines


def _ensemble_line(ensemble: Mapping[str, Any]) -> str:
    """``the best of 8 models: seed 3; mse of the judging rollout 1e-3 ± 2e-4 (7e-4 … 2e-3)``."""
    members, spread = ensemble["members"], ensemble["spread"]["score"]
    best = members[ensemble["best"]]
    name = f"seed {best['seed']}" if "seed" in best else f"without part {best['fold']}"
    return (
        f"the best of {len(members)} models: {name}; mse of the rollouts that judge them {number(spread['mean'])} "
        f"± {number(spread['std'])} ({number(spread['min'])} … {number(spread['max'])})"
    )


def _plan_lines(result: Mapping[str, Any]) -> list[str]:
    """The plan of a dry run: what would be trained, and what step 0 found in each channel."""
    plain = {key: value for key, value in result.items() if isinstance(value, str | int | float) and key != "dry_run"}
    lines = [f"{key}: {value}" for key, value in plain.items() if key != "command"]
    lines += ["model: " + " ".join(f"{key}={value}" for key, value in dict(result["model"]).items())]
    if (slices := result.get("slices")) is not None:
        lines.append(
            f"slices: {slices['count']} of {counted(slices['trajectories_each'], 'trajectory', 'trajectories')}, "
            f"{number(slices['resident_mb'])} MB stay in memory, set-up {duration(slices['seconds_setup'])}, "
            f"{number(slices['seconds_per_iteration'])} s an iteration"
        )
    rows = [["channel", "error of step 0", "noise"]]
    rows += [[name, number(one["error"]), number(one["noise"])] for name, one in result["step_zero"].items()]
    return [*lines, *columns(rows)]
