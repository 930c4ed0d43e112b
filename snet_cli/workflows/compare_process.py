"""Runs a row in a process of its own, so that its peak memory is its own and a crash is one failed row."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

import snet_cli
from snet_cli.data.outputs import no_scratch
from snet_cli.evaluation.comparison import failed_row
from snet_cli.workflows.compare_plan import Job
from snet_cli.workflows.compare_store import Finished, load_finished
from snet_cli.workflows.reporter import Reporter, Tick

WORKER = "snet_cli.workflows.compare_worker"


def run_isolated(job: Job, folder: Path, fingerprint: str, report: Reporter) -> Finished:
    """Start the process, pass on what it says, and read the row it leaves.

    Whatever ends this (Ctrl-C), ends the process too. A process that leaves no row, because it never began, was
    killed or has a bug, gives a row that says so and is not kept: it is tried again on `--resume`.

    Raises
    ------
    OutputError
        If there is no room for a temporary file.
    """
    command = [sys.executable, "-P", "-m", WORKER, str(folder), fingerprint]
    with _scratch() as complaints:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
                encoding="utf-8",
                env={**os.environ, "PYTHONPATH": _search_path()},
                start_new_session=True,
            )
        except OSError as problem:  # no more processes, memory or files are to be had
            reason = f"its process could not be started: {problem.strerror or problem}"
            return Finished(failed_row(job.method, job.case, reason))
        code = _followed(process, job, report)
        complaints.seek(0)
        said = complaints.read()
    finished = load_finished(folder, fingerprint)
    if finished is not None and code == 0:
        return finished
    if said.strip():
        report.detail(said.rstrip())
    return Finished(failed_row(job.method, job.case, _reason(code, said)))


def _followed(process: subprocess.Popen[str], job: Job, report: Reporter) -> int:
    """The exit code of the process, once everything that it says is passed on."""
    with process:
        try:
            assert process.stdout is not None
            _pass_on(process.stdout, job, report)
            return process.wait()
        except BaseException:
            process.kill()
            raise


def _scratch() -> IO[str]:
    """A file without a name, for what the process complains of: a pipe that nobody empties would stop it."""
    try:
        return tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
    except OSError as problem:
        raise no_scratch(problem) from None


def _search_path() -> str:
    """The package is found where it was found here, and never in the folder that people work in."""
    own = str(Path(snet_cli.__file__).resolve().parent.parent)
    return os.pathsep.join(part for part in (own, os.environ.get("PYTHONPATH", "")) if part)


def _pass_on(stream: IO[str], job: Job, report: Reporter) -> None:
    """Everything that the process says, under the row's name."""
    name = job.label
    for line in stream:
        try:
            tree = json.loads(line)
        except ValueError:
            report.detail(f"{name}: {line.rstrip()}")  # somebody else's print
            continue
        if "note" in tree:
            report.note(f"{name}: {tree['note']}")
        elif "detail" in tree:
            report.detail(f"{name}: {tree['detail']}")
        elif "tick" in tree:
            report.progress(Tick(**{**tree["tick"], "phase": name}))


def _reason(code: int, said: str) -> str:
    """Why a process left no row."""
    if code == -signal.SIGKILL:
        return "its process was killed, as the system does where the memory does not suffice"
    if code < 0:
        return f"its process ended with {signal.Signals(-code).name}"
    last = said.strip().splitlines()[-1:] or ["it said nothing"]
    return f"its process ended with {code}: {last[0][:200]}"
