"""`snet fit`: trajectory file -> checkpoint."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from typing import Any

import torch

from snet_cli.data.checkpoint_file import save_checkpoint
from snet_cli.data.locks import output_lock
from snet_cli.data.options import CommonOptions
from snet_cli.data.outputs import check_no_input_is_overwritten, check_output
from snet_cli.data.storage import display
from snet_cli.distributed import ALONE, Lane, Team, in_lanes
from snet_cli.errors import UsageError
from snet_cli.training.loop import FitResult, Limits, Progress, keep_nothing, run
from snet_cli.training.options import EnsembleOptions, FitOptions
from snet_cli.workflows import device_choice
from snet_cli.workflows.confidence import posterior_at_end
from snet_cli.workflows.device_choice import devices_to_time, on_faster
from snet_cli.workflows.ensemble import check_ensemble, require_a_trajectory_each, train_ensemble
from snet_cli.workflows.fit_data import FitData, load_fit_data
from snet_cli.workflows.fit_end import final_scores, require_a_model
from snet_cli.workflows.fit_plan import notes_of, plan_of_fit, tell_setup
from snet_cli.workflows.fit_slices import build_in_slices, require_same_reading
from snet_cli.workflows.fit_task import Begun, FitTask, require_agreement, start_afresh
from snet_cli.workflows.member_runs import check_member_outputs, finished_members, member_keys, saved_members
from snet_cli.workflows.methods import build_training, iterations_of, resolve_method
from snet_cli.workflows.metrics_file import MetricsFile, check_metrics
from snet_cli.workflows.reporter import Reporter, Silent
from snet_cli.workflows.resources import peak_memory_mb
from snet_cli.workflows.resume import (
    SavedRun,
    StateWriter,
    check_fit_output,
    find_state,
    fingerprint,
    state_path,
)
from snet_cli.workflows.run_state import on_device
from snet_cli.workflows.run_writer import state_writer
from snet_cli.workflows.sliced_data import SlicedData, load_slices, needs_slices
from snet_cli.workflows.slices_end import estimates_in_slices
from snet_cli.workflows.train_one import (
    checkpoint_of,
    limits_of,
    search_end,
    set_threads_of_method,
    set_up,
    summary_of,
    tick_of,
    with_estimates,
)
from snet_cli.workflows.training_plan import Ingredients, Training
from snet_cli.workflows.training_setup import choose_model

FINISHED = ("converged", "iterations", "diverged")
"""How a run ends that has nothing more to do under its limits; one that ran out of time has."""

ROLLOUT_SHARE = 0.15
"""Share of `--max-time` that is kept back for the final rollout, and a quarter of a second more."""


def fit(
    train: str,
    output: str,
    options: FitOptions | None = None,
    common: CommonOptions | None = None,
    *,
    force: bool = False,
    dry_run: bool = False,
    metrics: str | None = None,
    resume: bool = False,
    checkpoint_every: str = "60s",
    report: Reporter | None = None,
    started: float | None = None,
    team: Team = ALONE,
    ensemble: EnsembleOptions | None = None,
) -> dict[str, Any]:
    """Train a model on a trajectory file and write the checkpoint.

    Parameters
    ----------
    train, output : str
        Paths; "-" reads stdin or writes stdout.
    force : bool
        Overwrite an existing output, and the state of an earlier run.
    dry_run : bool
        Resolve, validate, fit step 0 and return the plan; write nothing.
    metrics : str, optional
        CSV file with one row per iteration.
    resume : bool
        Go on from the state beside the output (`workflows.resume`), if there is one.
    checkpoint_every : str
        How often that state is written: ``60s`` or ``100it``.
    report : Reporter
        Receives notes and progress, and says when to stop; the model so far is written then.
    started : float, optional
        Reading of `time.perf_counter` from which `seconds` and `--max-time` count; the call's own start unless given.
    team : Team
        The processes that train together (`distributed.joined_processes`), each on its own trajectories.
    ensemble : EnsembleOptions, optional
        Several models instead of one (`workflows.ensemble`); the processes share them, not the trajectories.

    Returns
    -------
    dict
        The JSON of DESIGN, section 4.

    Raises
    ------
    SnetError
        Any of the tree; nothing is written then, but for the state of a run that had begun.
    """
    task = FitTask(
        train,
        output,
        options or FitOptions(),
        common or CommonOptions(),
        force,
        resume,
        metrics,
        checkpoint_every,
        report or Silent(),
        time.perf_counter() if started is None else started,
        team,
    )
    several = ensemble is not None and ensemble.wanted
    if ensemble is not None and several:
        check_ensemble(task, ensemble)
    if dry_run:
        return plan_of_fit(task.train, task.options, task.common, task.report, task.started, team, several=several)
    _check_files(task)
    if ensemble is not None and several:
        check_member_outputs(task, ensemble)
        with output_lock(output, display(output)) if team.is_lead and output != "-" else nullcontext():
            return _fit_ensemble(task, ensemble)
    if output == "-":
        return _fit(task, None)
    with output_lock(output, display(output)) if team.is_lead else nullcontext():
        saved = find_state(output, task.common.max_bytes, task.report) if resume else None
        if resume and saved is None:
            start_afresh(task, state_path(output))
        return _fit(task, saved)


def _check_files(task: FitTask) -> None:
    """Refuse outputs that cannot be written, before any work.

    Raises
    ------
    OutputError, UsageError
    """
    task.team.require_files(task.train)
    force = task.force or task.resume
    check_fit_output(task.output, force)
    if task.output == "-" and task.resume:
        raise UsageError("--resume needs a file beside which the state of the run lies, not -o -.", "Use -o FILE.")
    validation = task.options.validation if isinstance(task.options.validation, str) else None
    check_no_input_is_overwritten(task.output, task.train, validation)
    if task.metrics is not None:
        check_metrics(task.metrics, task.output)
        check_no_input_is_overwritten(task.metrics, task.train, validation)
        check_output(task.metrics, force)


def _fit(task: FitTask, saved: SavedRun | None) -> dict[str, Any]:
    """Set up, train, judge and write; from a saved state on, if there is one."""
    options, common, report, team = task.options, task.common, task.report, task.team
    devices = device_choice.candidates(common.device, team.place)
    data: FitData | SlicedData = (
        load_slices(task.train, options, common, report)
        if needs_slices(task.train, options, common, team)
        else load_fit_data(task.train, options, common, report)
    )
    with closing(data):
        sliced = isinstance(data, SlicedData)
        return _fit_to(task, data, saved, devices_to_time(devices, options, report, team, saved, sliced=sliced))


def _fit_to(
    task: FitTask, data: FitData | SlicedData, saved: SavedRun | None, devices: Sequence[torch.device]
) -> dict[str, Any]:
    """The same with the data at hand; of several devices the faster one is taken, and what begins is on the last."""
    options, common, report, team, device = task.options, task.common, task.report, task.team, devices[-1]
    run_key = fingerprint(options, common, device, choose_model(options, data.shell), data.parents)
    require_agreement(team, run_key, data, saved)
    if saved is not None:
        saved.check_fits(run_key)
        saved.check_threads(common.threads, team.size)
        if (earlier := _finished(task, saved)) is not None:
            return earlier
    begun = _set_up(task, data, device, saved)
    if len(devices) > 1:
        begun = on_faster(begun, devices, report, task.started)
        run_key = {**run_key, "device": begun.parts.device.type}
    if saved is not None:
        saved.check_threads(torch.get_num_threads(), begun.recorded)
        if saved.processes != begun.recorded:
            report.note(f"the run had {saved.processes} process(es), and goes on with {team.size}: other last digits.")
    lanes = begun.lanes
    if lanes == 1 or isinstance(team, Lane):
        return _train_and_write(task, begun, run_key, saved)
    return in_lanes(team, lanes, lambda lane: _train_and_write(task.on(lane), begun.on(lane), run_key, saved))


def _train_and_write(task: FitTask, begun: Begun, run_key: dict[str, Any], saved: SavedRun | None) -> dict[str, Any]:
    """Train, judge and write what is set up."""
    options, common, report, team = task.options, task.common, task.report, task.team
    parts, data, device = begun.parts, begun.parts.data, begun.parts.device
    setup_seconds = task.seconds
    training = _build(task, begun)
    limits = limits_of(training, options, _deadline(task))
    if saved is not None:
        saved.check_limit(limits.iterations)
    writer = None  # where the model goes to stdout
    if task.output != "-":
        writer = state_writer(task.output, task.checkpoint_every, parts, training, run_key, saved, report)
    result = _train(task, training, limits, saved, writer, device)
    for remark in getattr(training.method, "remarks", ()):
        report.detail(remark)
    if result.status == "diverged" and result.iterations == 0 and writer is not None:
        writer.discard()
    require_a_model(training, result, report)
    sliced = begun.in_slices
    setup = with_estimates(parts.setup, training) if sliced is None else estimates_in_slices(sliced.setup, training)
    scores, reason = final_scores(task, begun, training, result, setup)
    if told := getattr(training.method, "finding", None) or reason:
        report.note(told)
    posterior = posterior_at_end(
        training.method,
        data.shell,
        setup.layout.outputs,
        common,
        report,
        math.inf if options.max_time is None else options.max_time - task.seconds,
        result.longest,
    )
    complete = not report.should_stop()
    summary = summary_of(setup, training, result, *scores)
    checkpoint = checkpoint_of(setup, training, result, summary, parts.data, options, common, device, posterior)
    force = task.force or saved is not None
    sha256 = save_checkpoint(task.output, checkpoint, force=force) if team.is_lead else ""
    answer = {
        **summary,
        "disagreement": reason,
        "resumed_from": None if saved is None else saved.state.iteration,
        "seconds": task.seconds,
        "seconds_setup": setup_seconds,
        "ms_per_iteration": 1e3 * result.seconds / max(result.iterations, 1),
        "peak_memory_mb": peak_memory_mb(),
        "output": task.output,
    }
    if writer is not None:
        ended = {"limits": _asked(task, training.method.name), "sha256": sha256, "result": answer}
        # a joint run that has no confidence for want of time is not at its end: --resume computes it
        kept = posterior is not None or sliced is not None
        complete = complete and not (not kept and training.method.name == "joint" and options.max_time)
        writer.finish(ended if complete and result.status in FINISHED else None)
    return answer


def _fit_ensemble(task: FitTask, ensemble: EnsembleOptions) -> dict[str, Any]:
    """Train all members and write them."""
    common, team = task.common, task.team
    devices = device_choice.candidates(common.device, team.place)
    (device,) = devices_to_time(devices, task.options, task.report, team, several=True)
    data = load_fit_data(task.train, task.options, common, task.report)
    team.require_same({f"{role} file": digest for role, digest in data.parents.items()})
    require_a_trajectory_each(data, ensemble)
    saved = saved_members(task, ensemble)
    keys = member_keys(task, data, ensemble, device, saved)
    first = next(iter(saved.values()), None)
    if first is not None:
        asked = _asked(task, first.about["method"])
        if (earlier := finished_members(task, saved, len(keys), asked)) is not None:
            return {**earlier, **_now(task, first), "resumed_from": earlier["iterations"]}
    writers: list[StateWriter] = []
    checkpoint, found = train_ensemble(task, data, ensemble, device, keys, saved, writers)
    complete = not task.report.should_stop() and team.size == 1 and len(writers) == len(keys)
    sha256 = save_checkpoint(task.output, checkpoint, force=task.force or task.resume) if team.is_lead else ""
    members = found["ensemble"]["members"]
    complete = complete and len(members) == len(keys) and all(one["status"] in FINISHED for one in members)
    answer = {
        **found,
        "seconds": task.seconds,
        "seconds_setup": task.seconds - sum(1e-3 * one["ms_per_iteration"] * one["iterations"] for one in members),
        "ms_per_iteration": members[found["ensemble"]["best"]]["ms_per_iteration"],
        "peak_memory_mb": peak_memory_mb(),
        "output": task.output,
    }
    ended = {"limits": _asked(task, found["method"]), "sha256": sha256, "result": answer} if complete else None
    for writer in writers:
        writer.finish(ended)
    return answer


def _asked(task: FitTask, method: str) -> dict[str, Any]:
    """The limits under which a finished run stays finished; the time is none: a new command has time of its own."""
    return {"iterations": iterations_of(task.options, method), "tolerance": task.options.tolerance}


def _finished(task: FitTask, saved: SavedRun) -> dict[str, Any] | None:
    """The result of a run that needs nothing more under these limits."""
    result = saved.finished(_asked(task, saved.about["method"]), task.output)
    if result is None:
        return None
    task.report.note(f"the run had finished at iteration {saved.state.iteration}; nothing is left to do.")
    return {**result, **_now(task, saved)}


def _now(task: FitTask, saved: SavedRun) -> dict[str, Any]:
    """What of a finished run's result belongs to the command that found it finished."""
    own = {"resumed_from": saved.state.iteration, "seconds": task.seconds, "seconds_setup": task.seconds}
    return {**own, "peak_memory_mb": peak_memory_mb(), "output": task.output}


def _set_up(task: FitTask, data: FitData | SlicedData, device: torch.device, saved: SavedRun | None) -> Begun:
    """Step 0, the problem and which method; what a saved run settled stays so."""
    options, common = task.options, task.common
    zero = None if saved is None else saved.step_zero
    settled = {} if saved is None else saved.about["settled"]
    if saved is not None:
        require_same_reading(settled, sliced=isinstance(data, SlicedData), path=display(saved.path))
    if isinstance(data, SlicedData):
        end = search_end(options, task.started)
        options = options if saved is None else options.model_copy(update={"method": saved.about["method"]})
        return build_in_slices(options, common, data, device, end, zero, task.report, task.team, settled)
    setup = set_up(options, common, data.train, device, task.started, zero, task.team)
    if saved is not None:
        options = options.model_copy(update={"method": saved.about["method"]})
    parts = Ingredients(setup, data, options, common, device, settled, task.team)
    choice = resolve_method(parts)
    set_threads_of_method(choice.method, common, setup, setup.problem.t.numel(), task.team)
    return Begun(parts, choice)


def _build(task: FitTask, begun: Begun) -> Training:
    """The method, and what the user should know of it."""
    parts, report = begun.parts, task.report
    if task.team.is_lead:
        tell_setup(parts.setup, notes_of(parts, begun.choice), report)
    training = begun.in_slices.training if begun.in_slices else build_training(begun.choice.method, parts)
    for note in training.notes:
        report.detail(note)
    for choice_made in training.choices:
        report.note(choice_made)
    return training


def _deadline(task: FitTask) -> float:
    """When training has to end, so that there is time for the final rollout."""
    most = task.options.max_time
    return math.inf if most is None else task.started + most - min(ROLLOUT_SHARE * most + 0.25, 0.5 * most)


def _train(
    task: FitTask,
    training: Training,
    limits: Limits,
    saved: SavedRun | None,
    writer: StateWriter | None,
    device: torch.device,
) -> FitResult:
    """Run the method to one of its limits; its model holds the result."""
    # a copy: optimisers work in the arrays that they restore, and every lane restores the same
    state = None if saved is None else copy.deepcopy(on_device(saved.state, device))
    done = None if saved is None else {"": saved.state.iteration}
    with MetricsFile.open(task.metrics if task.team.is_lead else None, task.force, done) as metrics_file:

        def each(progress: Progress) -> None:
            metrics_file.write(progress)
            task.report.progress(tick_of(progress, limits))

        return run(
            training.method,
            limits,
            each,
            task.report.should_stop,
            resume=state,
            save=writer or keep_nothing,
            team=task.team,
        )
