"""One run of a command: its options from all places, its output, and how it prints."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import typer
from pydantic import BaseModel, ConfigDict, Field

from snet_cli.cli.console import Console, quoted
from snet_cli.config.layers import Resolved, Sources, resolve
from snet_cli.config.scalars import dump
from snet_cli.data.options import CommonOptions, Interval
from snet_cli.distributed import ALONE, Team, joined_processes, place_in
from snet_cli.errors import SnetError, UsageError

Options = TypeVar("Options", bound=BaseModel)


class RunOptions(BaseModel):
    """Options of the run, none of which changes a result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    output: str | None = Field(default=None, description="File to write.")
    metrics: str | None = Field(default=None, description="CSV file with one row per iteration.")
    force: bool = Field(default=False, description="Overwrite an existing output.")
    dry_run: bool = Field(default=False, description="Check everything and print the plan.")
    quiet: bool = Field(default=False, description="Say nothing but errors.")
    verbose: bool = Field(default=False, description="Say more.")


class ResumeOptions(BaseModel):
    """Options of a run that can go on where an earlier one ended; none changes a result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint_every: Interval = Field(
        default="60s", description="How often the state is written from which --resume goes on: 60s or 100it."
    )
    resume: bool = Field(default=False, description="Go on from the state beside the output, if there is one.")


@contextmanager
def working_together(session: Session) -> Iterator[Team]:
    """The processes that `torchrun` started for this command; one process where nothing did."""
    if place_in(os.environ).size == 1:
        yield ALONE
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch's stack traces of a lost connection, which we tell
    from snet_cli.workflows.resources import choose_device  # torch: 1.4 s that a usage error need not wait for

    with joined_processes(choose_device(session.common.device).type) as team:
        session.console.team = team
        yield team


@dataclass(frozen=True)
class Session:
    """The resolved options of one run, and its console."""

    resolved: Resolved
    run: RunOptions
    console: Console

    def get(self, cls: type[Options]) -> Options:
        """The options of one class."""
        return self.resolved.get(cls)

    @property
    def common(self) -> CommonOptions:
        """Seed, device, threads and limits."""
        return self.resolved.get(CommonOptions)

    def output(self, example: str) -> str:
        """The output's name.

        Raises
        ------
        UsageError
            If none was given, or JSON and the file would both go to stdout.
        """
        if self.run.output is None:
            raise UsageError("the name of the output is missing.", f"Add it: -o {example}")
        if self.run.output == "-" and self.console.as_json:
            raise UsageError("-o - and --json both write to stdout.", "Leave one of them out, or use -o FILE.")
        return self.run.output

    def present(
        self, result: Mapping[str, Any], lines: Sequence[str], following: str = "", failure: SnetError | None = None
    ) -> None:
        """Print the result, say what was written and what comes next, then fail if the result is not good enough.

        Parameters
        ----------
        lines : sequence of str
            The result for people.
        following : str
            The next command.
        failure : SnetError, optional
            What to fail with; the result is printed first.
        """
        streamed = self.run.output == "-" and not result.get("dry_run")
        self.console.result(result, () if streamed else lines, failure)
        if self.run.output is not None and not result.get("dry_run"):
            self.console.wrote(self.run.output, following)
        if failure is not None:
            raise failure

    def shows_config(self, asked: bool | None) -> bool:
        """Print the resolved options if `--show-config` asked for it; then there is nothing else to do."""
        if asked:
            without = {*RunOptions.model_fields, *ResumeOptions.model_fields}
            own = {key: value for key, value in self.resolved.tree().items() if key not in without}
            self.console.result(own, [dump(own).rstrip("\n")])
        return bool(asked)


def open_session(
    ctx: typer.Context,
    *classes: type[BaseModel],
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    without: Sequence[str] = (),
) -> Session:
    """Resolve the options of a command from its flags, `--set`, SNET_ variables and YAML.

    Parameters
    ----------
    ctx : typer.Context
        Holds the flags as they were given.
    classes : type
        The command's own option classes; those of the run and the common ones come with it.
    without : sequence of str
        Fields of these classes that the command has not.

    Raises
    ------
    UsageError
        If an option is wrong.
    """
    flags = dict(ctx.params)
    declared = {key for key in ctx.params if key in RunOptions.model_fields or key in CommonOptions.model_fields}
    own = {key for cls in classes for key in cls.model_fields} - set(without)
    sources = Sources(
        flags=flags,
        sets=flags.get("set_") or (),
        config=(flags["config"] or os.environ.get("SNET_CONFIG") or None) if "config" in flags else None,
        environment=os.environ,
        presets=presets or {},
        command=ctx.command_path,
    )
    resolved = resolve(sources, (*classes, CommonOptions, RunOptions), frozenset(declared | own))
    run = resolved.get(RunOptions)
    if run.quiet and run.verbose:
        raise UsageError("--quiet and --verbose contradict each other.", "Leave one of them out.")
    console: Console = ctx.obj
    console.quiet, console.verbose = run.quiet, run.verbose
    return Session(resolved, run, console)


def needed(value: str | None, name: str, example: str) -> str:
    """A positional argument that must be there unless only the configuration is shown.

    Raises
    ------
    UsageError
        If it is not.
    """
    if value is None:
        raise UsageError(f"the argument {name} is missing.", f"For example: {example}")
    return value


def again(ctx: typer.Context) -> str:
    """The command as it was given, with --resume."""
    words = ctx.command_path.split()
    for param in ctx.command.params:
        value = ctx.params.get(str(param.name))
        if value in (None, False, [], ()) or param.name in ("force", "resume"):
            continue
        if param.param_type_name == "argument":
            words.append(quoted(str(value)))
        elif value is True:
            words.append(param.opts[0])
        else:
            for one in value if isinstance(value, list | tuple) else [value]:
                words += [param.opts[0], quoted(str(one))]
    return " ".join([*words, "--resume"])


def counted(count: int, one: str, many: str = "") -> str:
    """``1 trajectory``, ``3 trajectories``."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def joined(values: Sequence[str]) -> str:
    """Names in one line; a dash where there are none."""
    return ", ".join(values) or "-"
