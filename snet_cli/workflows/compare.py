"""`snet compare`: several methods on one training set and one test set, one table; or an experiment of the paper.

Rows are made one after the other, each in a process of its own, and stand in DIR as soon as they are finished; the
tables are written anew after each of them, so that an interrupted comparison has all that it measured.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from snet_cli.data.checkpoint_file import load_checkpoint_with_notes
from snet_cli.data.locks import output_lock
from snet_cli.data.options import CommonOptions
from snet_cli.data.storage import display
from snet_cli.data.trajectory_file import load_with_notes
from snet_cli.errors import CheckpointError, DataError, NumericalError, OutputError, SnetError, UsageError
from snet_cli.evaluation.comparison import TABLE_FILES, Comparison, write_tables
from snet_cli.systems.registry import get_system, system_parameters
from snet_cli.workflows.compare_options import CompareOptions
from snet_cli.workflows.compare_plan import DATA, RUNS, Job, Plan, plan_comparison
from snet_cli.workflows.compare_process import run_isolated
from snet_cli.workflows.compare_store import JOB, ROW, Finished, folder_of, load_finished, write_json
from snet_cli.workflows.experiment_sizes import Size
from snet_cli.workflows.experiments import DataSet
from snet_cli.workflows.reporter import Reporter, Silent
from snet_cli.workflows.simulate import simulate


class Compared(NamedTuple):
    """What a comparison gave: its JSON, and what it fails with although it has one."""

    result: dict[str, Any]
    failure: SnetError | None = None


def compare(
    train: str | None,
    output: str,
    options: CompareOptions | None = None,
    common: CommonOptions | None = None,
    *,
    force: bool = False,
    dry_run: bool = False,
    report: Reporter | None = None,
    size: Size | None = None,
    isolate: bool = True,
) -> Compared:
    """Train methods under one budget, test them, and write tables and pictures.

    Parameters
    ----------
    train : str or None
        Trajectory file; None for an experiment, or where only checkpoints are compared.
    output : str
        DIR.
    force : bool
        Overwrite a comparison that is there.
    dry_run : bool
        Check everything, return the plan, write nothing.
    size : str, optional
        Of an experiment; by default as `options.quick` says.
    isolate : bool
        Each row in a process of its own; without it, peak memory is that of this process.

    Returns
    -------
    Compared

    Raises
    ------
    SnetError
        For what is found wrong before any training; methods that fail are rows.
    """
    options, common, report = options or CompareOptions(), common or CommonOptions(), report or Silent()
    plan = plan_comparison(train, output, options, common, size)
    if not dry_run or os.path.lexists(output):
        check_comparison_folder(output, force or options.resume)
    plan = _checked(plan, common, report)
    if dry_run:
        plain = {"command": "compare", "dry_run": True, "preset": options.preset}
        return Compared({**plain, **plan.to_json(), "output": output})
    with output_lock(output, display(output)):
        return _compared(plan, output, options, common, report, isolate)


def _compared(
    plan: Plan, output: str, options: CompareOptions, common: CommonOptions, report: Reporter, isolate: bool
) -> Compared:
    """Simulate what is to be simulated, make the rows, draw the pictures."""
    _make_folders(output, plan)
    for path, data in plan.data.items():
        _provide(path, data, common, report, options.resume)
    if plan.data:
        _check_models(plan.jobs, {}, common, report)
    finished = _all_rows(plan, output, options, report, isolate)
    comparison = Comparison(tuple(each.row for each in finished), output, options.preset)
    from snet_cli.workflows.compare_figures import draw_comparison  # matplotlib: not before it is needed

    pictures = draw_comparison(output, plan.jobs, comparison.rows)
    result = {**comparison.to_json(), "pictures": [str(path) for path in pictures]}
    return Compared(result, _failure(plan.jobs, finished))


def check_comparison_folder(output: str, may_exist: bool) -> None:
    """Refuse a folder that could not be written, or that holds a comparison already.

    Raises
    ------
    OutputError
    """
    path, label = Path(output), display(output)
    if output == "-":
        raise UsageError("the output of a comparison is a folder, not standard output.", "Write -o comparison")
    if not os.path.lexists(path):
        if not path.absolute().parent.is_dir():
            raise OutputError(f"{label}: there is no folder {display(path.parent)}.", "Make it first: mkdir -p")
        if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
            raise OutputError(f"{label}: the folder {display(path.parent)} is not writable.", "Choose another.")
        return
    if not path.is_dir():
        raise OutputError(f"{label}: is a file, expected a folder.", "Choose another -o.")
    if not os.access(path, os.W_OK | os.X_OK):
        raise OutputError(f"{label}: the folder is not writable.", "Choose another -o.")
    held = [name for name in (*TABLE_FILES, RUNS, DATA) if (path / name).exists()]
    if held and not may_exist:
        raise OutputError(
            f"{label}: holds a comparison already ({held[0]}).",
            "Go on with it: --resume; overwrite it: --force; or choose another -o.",
        )


def _checked(plan: Plan, common: CommonOptions, report: Reporter) -> Plan:
    """Everything that can be known before any training: files are readable, models fit them, checkpoints have methods.

    Raises
    ------
    SnetError
    """
    jobs = []
    for job in plan.jobs:
        if job.checkpoint is not None:
            checkpoint = load_checkpoint_with_notes(job.checkpoint, max_bytes=common.max_bytes).checkpoint
            if checkpoint.kind != "model":
                raise CheckpointError(f"{job.checkpoint}: holds the state of an unfinished run, not a model.")
            method = dict(checkpoint.config.get("fit") or {}).get("method")
            job = replace(job, method=str(method or "unknown"))
        jobs.append(job)
    _check_models(jobs, plan.data, common, report)
    return replace(plan, jobs=tuple(jobs))


def _check_models(jobs: Sequence[Job], data: Mapping[str, DataSet], common: CommonOptions, report: Reporter) -> None:
    from snet_cli.workflows.compare_checks import check_models  # torch: a usage error need not wait for it

    check_models(jobs, data, common, report)


def _make_folders(output: str, plan: Plan) -> None:
    """DIR and what lies in it."""
    try:
        Path(output).mkdir(exist_ok=True)
        for folder in [Path(output) / RUNS, *(folder_of(output, job) for job in plan.jobs)]:
            folder.mkdir(exist_ok=True)
        if plan.data:
            (Path(output) / DATA).mkdir(exist_ok=True)
    except OSError as problem:
        raise OutputError(f"{display(output)}: the folder cannot be made: {problem.strerror}.") from None


def _provide(path: str, data: DataSet, common: CommonOptions, report: Reporter, resume: bool) -> None:
    """Simulate a data set of an experiment, unless it is there from before."""
    if resume and _is_there(path, data):
        return
    report.detail(f"simulating {path}")
    parameters = system_parameters(get_system(data.system), data.parameters)
    settings = common.model_copy(update={"seed": data.seed})
    simulate(data.system, path, data.options, parameters, settings, force=True, report=report)


def _is_there(path: str, data: DataSet) -> bool:
    """Whether the file is what would be simulated."""
    try:
        record = load_with_notes(path).trajectories.provenance
    except SnetError:
        return False
    wanted = {
        "system": data.system,
        "seed": data.seed,
        **data.parameters,
        **data.options.model_dump(mode="json", exclude_none=True),
    }
    held = record.get("options", {})
    return all(held.get(key) == value for key, value in wanted.items())


def _all_rows(plan: Plan, output: str, options: CompareOptions, report: Reporter, isolate: bool) -> list[Finished]:
    """Make the rows that are not there yet; the tables are up to date after each."""
    paths = {str(path) for job in plan.jobs for path in (job.train, job.test, job.checkpoint, job.source) if path}
    sums = {path: _sum_of(path) for path in sorted(paths)}
    if not options.resume:
        for job in plan.jobs:
            (folder_of(output, job) / ROW).unlink(missing_ok=True)
    finished: list[Finished] = []
    for number, job in enumerate(plan.jobs, 1):
        folder, fingerprint = folder_of(output, job), job.fingerprint(sums)
        done = load_finished(folder, fingerprint) if options.resume else None
        if done is None:
            (folder / ROW).unlink(missing_ok=True)
            write_json(folder / JOB, job.to_json())
            done = _run(job, folder, fingerprint, report, isolate)
            report.detail(f"{job.label}: {done.row.status}, row {number} of {len(plan.jobs)}")
        finished.append(done)
        write_tables(output, Comparison(tuple(each.row for each in finished), output, options.preset), force=True)
    return finished


def _run(job: Job, folder: Path, fingerprint: str, report: Reporter, isolate: bool) -> Finished:
    if isolate and job.kind != "hold":  # which needs no memory of its own, and no seconds to start
        return run_isolated(job, folder, fingerprint, report)
    from snet_cli.workflows.compare_rows import make_row

    return make_row(job, folder, fingerprint, report)


def _sum_of(path: str) -> str:
    """The sha256 of a file.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as problem:
        raise DataError(f"{display(path)}: cannot be read: {problem.strerror}.") from None


def _failure(jobs: Sequence[Job], finished: Sequence[Finished]) -> SnetError | None:
    """What the comparison fails with: nothing, as long as one method has a result."""
    methods = [each for job, each in zip(jobs, finished, strict=True) if job.method not in ("linear", "hold")]
    if any(each.row.train_mse is not None or each.row.test_mse is not None for each in methods):
        return None
    if any(each.row.status != "failed" and each.row.final_loss is not None for each in methods):
        return None
    first = methods[0]
    kinds = {kind.exit_code: kind for kind in (UsageError, DataError, CheckpointError)}
    message = (first.row.message or "it has no result").removeprefix("failed: ")
    if all(each.exit_code in kinds for each in methods):
        assert first.exit_code is not None
        return kinds[first.exit_code](message, first.hint)
    return NumericalError(
        f"no method has a result; {first.row.label}: {message}.", "Look at the data with snet info, or train longer."
    )
