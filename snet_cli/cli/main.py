"""`snet`: finds the command, runs it, and is the one place that turns errors into messages and exit codes.

Each command's module is imported when it is called, so that `snet --help` waits for none of them.
"""

from __future__ import annotations

import difflib
import importlib
import os
import resource
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from snet_cli import __version__
from snet_cli.cli.console import FAREWELL, Console, clean
from snet_cli.cli.signals import Interrupted, ending_at_once
from snet_cli.cli.waiting import sleep_where_others_run
from snet_cli.distributed import place_in
from snet_cli.errors import NumericalError, SnetError, UsageError

COMMANDS = {
    "simulate": ("snet_cli.cli.simulate", "A ground-truth system -> trajectory file."),
    "import": ("snet_cli.cli.import_", "Your own recordings (CSV, NPZ, MAT) -> trajectory file."),
    "info": ("snet_cli.cli.info", "What is in a file; --check verifies it."),
    "fit": ("snet_cli.cli.fit", "Trajectory file -> model."),
    "evaluate": ("snet_cli.cli.evaluate", "Model + trajectory file -> forecast, scores, pictures."),
    "compare": ("snet_cli.cli.compare", "Several methods on one file, one table; the experiments of the paper."),
}
"""Name -> module with `command` and EXAMPLES, and what `snet --help` says of it. A new command is one line here."""

TOGETHER = ("simulate", "fit", "evaluate")
"""Commands whose work several processes can share."""

EXAMPLE = """Learn x' = f(t, x, u) from recorded trajectories, without integrating it, and forecast.

\b
snet simulate vehicle -o train.h5                  a ground-truth system -> trajectory file
snet import runs/*.csv -o train.h5 --states x,y    your own recordings   -> trajectory file
snet fit train.h5 -o model.h5                      trajectory file       -> model
snet evaluate model.h5 test.h5 --plot figures      forecast, scores, pictures
snet compare train.h5 --test test.h5 -o dir        several methods, one table
snet info model.h5                                 what is in a file
"""

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}

PARSE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
"""Base of everything that the parser of flags finds wrong: click's UsageError, wherever typer keeps it."""

PIPE_EXIT = 141
"""128 + SIGPIPE: what a shell reports of a program whose reader has gone."""

WITHOUT_TORCH = ("info", "import")
"""Commands that need NumPy and HDF5 alone."""

ADDRESS_SPACE = {True: 300_000_000, False: 1_250_000_000}
"""Bytes that commands without and with torch need on two cores; measured: 0.25 and 1.0 GB."""

ADDRESS_SPACE_OF_A_CORE = 100_000_000
"""Bytes for each further core: stacks and buffers of two BLAS libraries' threads."""

OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc")
"""What torch says, in a `RuntimeError`, where Python has `MemoryError`."""


class Commands(TyperGroup):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the work."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a command's module and make its parser.

        Raises
        ------
        UsageError
            With the nearest name, if there is no such command.
        """
        if cmd_name not in COMMANDS:
            near = difflib.get_close_matches(cmd_name, COMMANDS, 1)
            hint = f"Did you mean 'snet {near[0]}'?" if near else f"There are {', '.join(COMMANDS)}."
            raise UsageError(f"there is no command '{cmd_name}'.", hint)
        module = importlib.import_module(COMMANDS[cmd_name][0])
        single = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=SETTINGS)
        single.command(cmd_name, epilog="\b\nExamples:\n  " + "\n  ".join(module.EXAMPLES))(module.command)
        return typer.main.get_command(single)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list of commands, without importing one."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


app = typer.Typer(
    name="snet", cls=Commands, add_completion=False, rich_markup_mode=None, context_settings=SETTINGS, help=EXAMPLE
)


@app.callback()
def snet(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version and end.")] = False,
) -> None:
    """Nothing is done for all commands alike; the version ends the program in `main`."""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    args : sequence of str, optional
        What follows `snet`; by default the process's own arguments.

    Returns
    -------
    int
        The exit code (DESIGN, section 4).
    """
    args = list(sys.argv[1:] if args is None else args)
    console = Console(as_json="--json" in args or os.environ.get("SNET_JSON", "") not in ("", "0", "false"))
    _be_lenient_with_characters()
    try:
        place = place_in(os.environ)
        console.is_lead = place.rank == 0
        if place.size > 1 and args[:1] and args[0] in COMMANDS and args[0] not in TOGETHER:
            raise UsageError(
                f"snet {args[0]} is one process, not {place.size}.", f"Several can do {', '.join(TOGETHER)}."
            )
        with ending_at_once():
            code = _run(args, console)
            sys.stdout.flush()
            return code
    except SnetError as error:
        console.error(error)
        return error.exit_code
    except PARSE_ERROR as error:
        usage = _explained(error, args)
        console.error(usage)
        return usage.exit_code
    except (KeyboardInterrupt, Interrupted) as error:
        stopped = error if isinstance(error, Interrupted) else Interrupted(2)
        console.error(_stopped(stopped))
        return stopped.exit_code
    except BrokenPipeError:
        _let_the_pipe_go()
        return PIPE_EXIT
    except MemoryError:
        return _out_of_memory(console)
    except Exception as error:
        if any(words in str(error) for words in OUT_OF_MEMORY):
            return _out_of_memory(console)
        print(clean(traceback.format_exc()), file=sys.stderr)
        console.error(SnetError(f"{type(error).__name__}: {error}", FAREWELL))
        return SnetError.exit_code


def _run(args: list[str], console: Console) -> int:
    if args[:1] == ["--version"]:
        print(f"snet {__version__}")
        return 0
    if not args:
        raise UsageError("no command was given.", f"There are {', '.join(COMMANDS)}; see 'snet --help'.")
    if args[0] in COMMANDS:
        _require_address_space(args[0])
        if args[0] not in WITHOUT_TORCH:
            sleep_where_others_run(os.environ)
    try:
        with typer.main.get_command(app).make_context("snet", args, obj=console) as ctx:
            code = ctx.command.invoke(ctx)
    except typer.Exit as end:
        return end.exit_code
    return code if isinstance(code, int) else 0


def _out_of_memory(console: Console) -> int:
    console.error(NumericalError("the memory does not suffice.", "Use fewer trajectories, or another machine."))
    return NumericalError.exit_code


def _require_address_space(command: str) -> None:
    """Refuse to begin under a limit (`ulimit -v`) that the libraries do not fit in.

    They do not fail there, but wait for ever or end the process, each in its own way; their threads take address
    space as well.

    Raises
    ------
    UsageError
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    needed = ADDRESS_SPACE[command in WITHOUT_TORCH] + ADDRESS_SPACE_OF_A_CORE * max((os.cpu_count() or 1) - 2, 0)
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise UsageError(
            f"the limit on address space is {limit / 1e9:.3g} GB, and snet {command} needs {needed / 1e9:.3g} GB for "
            "its libraries alone.",
            f"Raise it: ulimit -v {-(-needed // 1024)}, or: ulimit -v unlimited",
        )


def _explained(error: Exception, args: Sequence[str]) -> UsageError:
    """What the parser of flags found wrong, with the nearest flag where one does not exist."""
    ctx = getattr(error, "ctx", None)
    command = " ".join(["snet", *args[:1]]) if args[0] in COMMANDS else "snet"
    message = getattr(error, "format_message", lambda: str(error))().split(" (Possible")[0].split(" Did you mean")[0]
    wrong = getattr(error, "option_name", "")
    if wrong and ctx is not None:
        known = [name for param in ctx.command.params for name in param.opts]
        near = difflib.get_close_matches(wrong, known, 1)
        if near and near[0] != wrong:
            return UsageError(f"{command}: there is no option '{wrong}'.", f"Did you mean '{near[0]}'?")
    return UsageError(f"{command}: {message[:1].lower()}{message[1:].rstrip('.')}.", f"See '{command} --help'.")


def _stopped(interruption: Interrupted) -> SnetError:
    error = SnetError(f"stopped by {interruption}.", "Every file is as it was before.")
    error.code = "interrupted"
    return error


def _let_the_pipe_go() -> None:
    """Nobody reads our stdout any more: what is still buffered goes nowhere, quietly."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # stdout is no file: a test, or already closed
        return


def _be_lenient_with_characters() -> None:
    """A terminal or pipe that cannot show a character gets its escape, not an error."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
