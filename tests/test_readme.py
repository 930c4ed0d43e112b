"""README.md is true: its tables are the program's, its commands and its code run, its tree is this repository's."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from snet_cli.cli.main import main
from tests.command import Snet
from tests.readme_sections import CONSOLE, ROOT, TOP_LEVEL, modules, pattern, rewritten, session

README = (ROOT / "README.md").read_text("utf-8")
SESSION = session(CONSOLE.findall(README)[0])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

FEW = "SNET_ITERATIONS"
"""Commands that leave the number of iterations to `fit` get three here: what they reach is measured elsewhere."""

NOT_OURS = ("python3 -m venv", ".venv/bin/", ".ci/run")
"""Lines that install or check this repository itself: `.ci/run` runs those."""


def sections() -> dict[str, str]:
    """Text of the README by heading, those that have something to run."""
    parts = re.split(r"^##+ (.*)$", README, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    return {title: text for title, text in found.items() if re.search(r"^```(sh|python)$", text, re.MULTILINE)}


def stand_ins(folder: Path) -> None:
    """Short recordings with the names and columns of the public ones, none of their numbers."""
    random = np.random.default_rng(0)
    for name in ("pendulum", "hovercraft", "robot_arm", "cascaded_tanks", "lynx_hare"):
        (folder / name).mkdir()

    def wave(time: np.ndarray, channels: int) -> np.ndarray:
        return np.sin(time[:, None] * random.uniform(0.5, 2, channels) + random.uniform(0, 6, channels))

    def write(path: str, header: str, columns: np.ndarray) -> None:
        np.savetxt(folder / path, columns, delimiter=",", header=header, comments="", fmt="%.6g")

    time = np.linspace(0, 3, 60)
    for name in ("train_00", "train_01", "valid_00", "valid_01"):
        write(f"pendulum/{name}.csv", "t_s,angle_rad,rate_rad_s", np.column_stack([time, wave(time, 2)]))
    for name in ("2024_03_05_h1_blue", "2024_03_14_h4_yellow"):
        np.savez(folder / f"hovercraft/{name}.npz", t=time, x=wave(time, 6), u=wave(time, 6))
    arm = {f"{k:03d}_{part}": wave(time, 12) for k in range(1, 81) for part in "x"}
    arm |= {f"{k:03d}_t": time for k in range(1, 81)}
    arm |= {f"{k:03d}_u": wave(time, 6)[:-1] for k in range(1, 81)}
    np.savez(folder / "robot_arm/robot_001_080.npz", **arm)  # type: ignore[arg-type]
    long = 4.0 * np.arange(80)
    for name in ("train", "test"):
        write(f"cascaded_tanks/{name}.csv", "t_s,u_V,y_V", np.column_stack([long, wave(long / 40, 2) + 3]))
    years = np.arange(1900.0, 1921.0)
    columns = np.column_stack([years, 30 + 20 * wave(years / 2, 2)])
    write("lynx_hare/hudson_bay.csv", "year,hare_thousand_pelts,lynx_thousand_pelts", columns)


class Reader(NamedTuple):
    """Where the session was run, and the lines that each of its commands printed."""

    folder: Path
    printed: list[list[str]]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """The folder of a reader after the session: sample data, recordings, and the session's files."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(ROOT / "sample_data", folder / "sample_data")
    stand_ins(folder)
    printed = []
    with contextlib.chdir(folder):
        for command, _ in SESSION:
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                assert main(shlex.split(command)[1:]) == 0
            printed.append((out.getvalue() + err.getvalue()).splitlines())
    return Reader(folder, printed)


@pytest.fixture
def reader(start: Reader, tmp_path: Path, snet: Snet, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in."""
    folder = tmp_path / "copy"
    shutil.copytree(start.folder, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv(FEW, "3")
    return folder


def test_tables_and_tree_are_what_the_program_says() -> None:
    assert rewritten(README) == README, "write them anew: python -m tests.readme_sections"


def test_the_tree_names_every_module_once_and_nothing_else() -> None:
    found = pattern("file tree").search(README)
    assert found is not None
    lines = found[0].splitlines()[2:-2]
    named = [line.split()[0] for line in lines]
    assert sorted(name for name in named if name.endswith(".py")) == sorted(
        path.name for path in modules() if path.name != "__init__.py" or len(path.parts) == 2
    )
    assert all(len(line.split()) > 1 for line in lines if line != "snet_cli/")
    assert all((ROOT / name).exists() for name in TOP_LEVEL)


def masked(lines: list[str]) -> list[str]:
    """Lines without what differs from machine to machine: digits, widths, durations, versions."""
    return sorted(re.sub(r"(\b|-)[\d.]+(e[+-]?\d+)?\b|[0-9a-f]{64}|\s+|; .*", " ", line).strip() for line in lines)


def test_the_session_prints_what_stands_there(start: Reader) -> None:
    for (_, output), printed in zip(SESSION, start.printed, strict=True):
        assert [line.split() for line in masked(printed)] == [line.split() for line in masked(output)]


def run_line(line: str, snet: Snet, folder: Path) -> None:
    """One documented line, as a shell would run it."""
    if line.startswith(NOT_OURS):
        return
    assert line.startswith("snet "), f"nothing runs this line: {line}"
    words = shlex.split(line)[1:]
    if "|" not in words:
        expanded = [name for word in words for name in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
        ran = snet(*expanded)
        few = expanded[0] == "evaluate"  # a model of three iterations may well diverge
        assert ran.code == 0 or (few and ran.code == 6), f"{line}\n{ran.err}"
        return
    shim = folder / "bin" / "snet"
    shim.parent.mkdir(exist_ok=True)
    shim.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} -m snet_cli "$@"\n')
    shim.chmod(0o755)
    path = f"{shim.parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(line, shell=True, check=True, env={**os.environ, "PATH": path}, capture_output=True)


LONG = (
    "Your own data",
    "What it reaches on simulated data",
    "Options",
    "Many models of one file",
    "The same in Python",
)
"""Sections of many fits, each for half a minute to two: not among the tests of every change."""


@pytest.mark.parametrize(
    "title", [pytest.param(title, marks=pytest.mark.slow) if title in LONG else title for title in sections()]
)
def test_commands_and_code_run(title: str, reader: Path, snet: Snet, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_simulations(monkeypatch, title)
    for language, block in BLOCK.findall(sections()[title]):
        first = re.match(r"# (\w+\.py)\n", block)
        if language == "python" and first is not None:
            Path(first[1]).write_text(block, "utf-8")
        elif language == "python":
            exec(compile(block, f"README.md, {title}", "exec"), {"__name__": "readme"})
        elif language == "sh":
            for line in block.splitlines():
                run_line(line, snet, reader)


def shorten_simulations(monkeypatch: pytest.MonkeyPatch, title: str) -> None:
    """Fewer trajectories and shorter forecasts where a command leaves them open: seconds instead of minutes."""
    monkeypatch.setenv("SNET_TRAJECTORIES", "4")
    if title.startswith("What it reaches"):
        monkeypatch.setenv("SNET_HORIZON", "5")
    if title == "The same in Python":
        monkeypatch.delenv(FEW)


def test_every_code_block_has_a_language_that_is_known() -> None:
    opened = re.findall(r"^```(\w*)$", README, re.MULTILINE)[::2]
    assert set(opened) <= {"sh", "console", "python", "text", "bibtex"}


def test_the_install_commands_of_the_readme_are_what_ci_runs() -> None:
    installs = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert len(installs) == 2
    assert "sample_data/quickstart.sh" in installs[0]
    assert installs[1].endswith("&& .venv/bin/pytest")
    assert 'grep --max-count=1 "pip install -e" README.md' in (ROOT / ".ci" / "run").read_text("utf-8")


def test_the_exit_codes_are_those_of_the_errors() -> None:
    from snet_cli import errors

    codes = {str(cls.exit_code) for cls in vars(errors).values() if isinstance(cls, type)}
    assert codes <= set(re.findall(r"^\| (\d+) \|", README, re.MULTILINE))


def test_the_keys_of_the_json_are_in_the_readme(reader: Path, snet: Snet) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*`output`.*) \|$", README, re.MULTILINE))
    fit = snet("fit", "train.h5", "-o", "short.h5", "--iterations", 1, "--order", 8, "--elements", 1, "--json")
    evaluate = snet("evaluate", "model.h5", "train.h5", "--json")
    for ran in (fit, evaluate):
        assert ran.code == 0, ran.err
        keys = set(ran.json) | {inner for key in ("loss", "channels") for inner in _inner(ran.json.get(key))}
        assert {key for key in keys if f"`{key}`" not in rows[ran.json["command"]]} == set()


def _inner(value: Any) -> set[str]:
    """Keys of an object of numbers, or of the first object in it."""
    if not isinstance(value, dict):
        return set()
    first = next(iter(value.values()))
    return set(first) if isinstance(first, dict) else set(value)


def test_the_file_format_tables_name_what_is_written(reader: Path) -> None:
    import h5py

    names: list[str] = []
    with h5py.File("train.h5") as file:
        names += [*file.attrs, *(re.sub(r"^(uf_)\w+?(_mean)$|^(y|x0|xtrue)_.*", _generic, name) for name in file)]
    with h5py.File("model.h5") as file:
        names += [*file.attrs, *(f"/{name}" for name in file)]
    unnamed = [name for name in names if name not in README and not re.fullmatch(r"traj|obs|harm|uf_.*", name)]
    assert unnamed == []


def _generic(match: re.Match[str]) -> str:
    return f"{match[1]}<name>{match[2]}" if match[1] else f"{match[3]}_<name>"
