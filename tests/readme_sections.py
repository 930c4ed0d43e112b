"""The parts of README.md that follow from the program: tables of options, of systems and of models, and the file tree.

Each stands between two comment lines that name it. ``python -m tests.readme_sections`` writes them anew; with ``--run``
it also runs the commands after each ``$`` and writes what they print.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from snet_cli.cli.main import COMMANDS, app
from snet_cli.models.options import MODEL_OPTIONS
from snet_cli.systems.registry import list_systems
from snet_cli.training.options import FitOptions

ROOT = Path(__file__).parents[1]

TOP_LEVEL = {
    "pyproject.toml": "what to install, and the rules of all tools",
    "sample_data/": "small files to try snet on, each with the command that made it; quickstart.sh",
    "tests/": "laws, oracles, error texts, hostile files; tests/benchmarks holds timings",
    ".ci/run": "all checks, in a virtual environment of their own",
}


def table(*rows: tuple[str, ...]) -> str:
    """A table in Markdown; the first row is the head."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def flags(command: str) -> dict[str, str]:
    """Flags of a command as its help shows them, with the help text."""
    group = typer.main.get_command(app)
    context: Any = typer.Context(group)
    found = {}
    for parameter in group.get_command(context, command).params:  # type: ignore[attr-defined]
        if parameter.param_type_name == "option":
            metavar = "" if parameter.is_flag else f" {parameter.metavar}"
            found[f"`{', '.join(parameter.opts)}{metavar}`"] = parameter.help
    return found


def shared_flags() -> dict[tuple[str, str], list[str]]:
    """Flags that two commands or more have in the same words, and which commands."""
    owners: dict[tuple[str, str], list[str]] = {}
    for command in COMMANDS:
        for flag in flags(command).items():
            owners.setdefault(flag, []).append(command)
    return {flag: commands for flag, commands in owners.items() if len(commands) > 1}


def common_options() -> str:
    everywhere = list(COMMANDS)
    rows = [
        (flag, text, "all" if commands == everywhere else ", ".join(commands))
        for (flag, text), commands in shared_flags().items()
    ]
    return table(("flag", "meaning", "commands"), *rows)


def options_of(command: str) -> Callable[[], str]:
    def section() -> str:
        shared = shared_flags()
        return table(("flag", "meaning"), *(f for f in flags(command).items() if f not in shared))

    return section


def fields(options: type[BaseModel], skip: set[str]) -> Iterator[tuple[str, str, str]]:
    """Key, default and meaning of the fields of an option class."""
    for key, field in options.model_fields.items():
        if key in skip:
            continue
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            yield from ((f"{key}.{inner}", *rest) for inner, *rest in fields(type(default), set()))  # type: ignore[misc]
        elif default is not PydanticUndefined:
            shown = "unset" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
            yield key, shown, field.description or ""


def fit_keys() -> str:
    named = {match for flag in flags("fit") for match in re.findall(r"--([a-z-]+)", flag)}
    rows = fields(FitOptions, {key.replace("-", "_") for key in named})
    return table(("key", "default", "meaning"), *((f"`{key}`", f"`{default}`", text) for key, default, text in rows))


def models() -> str:
    rows = [
        (f"`{name}`", f"`{key}`" if key else "", f"`{default}`" if key else "", text)
        for name, options in MODEL_OPTIONS.items()
        if name != "user"
        for key, default, text in [("", "", " ".join((options.__doc__ or "").split())), *fields(options, {"name"})]
    ]
    return table(("model", "key", "default", "meaning"), *rows)


def systems() -> str:
    def listing(names: tuple[str, ...]) -> str:
        return ", ".join(names if len(names) <= 6 else (*names[:3], "…", names[-1])) or "none"

    rows = [
        (f"`{s.name}`", f"{s.horizon:g}", str(s.samples), listing(s.states), listing(s.inputs), s.title)
        for s in list_systems()
    ]
    return table(("system", "horizon", "samples", "states", "inputs", "what it is"), *rows)


def modules() -> list[Path]:
    """Every Python file of the package that git tracks; every one there is where there is no git."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "snet_cli"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        listed = []
    paths = [ROOT / name for name in listed] or list((ROOT / "snet_cli").rglob("*.py"))
    return sorted(path.relative_to(ROOT) for path in paths if path.suffix == ".py" and path.exists())


def purpose(path: Path) -> str:
    """The first line of a module's docstring."""
    docstring = ast.get_docstring(ast.parse((ROOT / path).read_text("utf-8"))) or ""
    return docstring.partition("\n")[0].rstrip(".")


def layers() -> list[str]:
    """The rooms in the order of the import rule, those that are imported last."""
    text = (ROOT / "pyproject.toml").read_text("utf-8").partition("layers = [")[2].partition("]")[0]
    return re.findall(r"snet_cli\.(\w+)", text)[::-1]


def file_tree() -> str:
    """One line per file, the rooms from the bottom to the top."""
    order = {room: k for k, room in enumerate(layers())}
    lines = ["snet_cli/"]
    room = Path("snet_cli")
    for path in sorted(modules(), key=lambda p: (len(p.parts) > 2, order.get(p.parts[1], 0), p)):
        if path.parent != room:
            room = path.parent
            lines.append(f"  {room.name + '/':<24}{purpose(room / '__init__.py')}")
        if len(path.parts) == 2 or path.name != "__init__.py":
            indent = "  " * (len(path.parts) - 1)
            lines.append(f"{indent}{path.name:<{26 - len(indent)}}{purpose(path)}")
    lines += [f"{name:<26}{text}" for name, text in TOP_LEVEL.items()]
    return "\n".join(["```text", *lines, "```"])


SECTIONS: dict[str, Callable[[], str]] = {
    "common options": common_options,
    **{f"options of {command}": options_of(command) for command in COMMANDS if command != "info"},
    "more keys of fit": fit_keys,
    "systems": systems,
    "models": models,
    "file tree": file_tree,
}


def pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- generated: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)


def rewritten(text: str) -> str:
    """The README with every generated section as it should be."""
    for name, section in SECTIONS.items():
        content = section()
        text, count = pattern(name).subn(lambda match, new=content: f"{match[1]}{new}\n{match[2]}", text)
        if count != 1:
            raise ValueError(f"README.md has {count} sections '{name}', expected one.")
    return text


CONSOLE = re.compile(r"(?<=```console\n).*?(?=```)", re.DOTALL)


def session(block: str) -> list[tuple[str, list[str]]]:
    """Each command of a console block, and the lines that it is said to print."""
    commands: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            commands.append((line[2:], []))
        else:
            commands[-1][1].append(line)
    return commands


def replayed(text: str) -> str:
    """The README with the true output of every console block, all run in one fresh folder with one thread."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "SNET_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

        def run(match: re.Match[str]) -> str:
            lines = []
            for command, _ in session(match[0]):
                done = subprocess.run(
                    command,
                    shell=True,
                    cwd=folder,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    check=True,
                )
                lines += [f"$ {command}", *done.stdout.rstrip().splitlines()]
            return "\n".join(lines) + "\n"

        return CONSOLE.sub(run, text)


def main() -> None:
    """Write README.md anew."""
    readme = ROOT / "README.md"
    text = rewritten(readme.read_text("utf-8"))
    readme.write_text(replayed(text) if "--run" in sys.argv[1:] else text, "utf-8")


if __name__ == "__main__":
    main()
