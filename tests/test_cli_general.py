import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import snet_cli
from snet_cli.cli.console import Console, clean, duration, jsonable, progress_line
from snet_cli.cli.main import COMMANDS, main
from snet_cli.cli.signals import Interrupted, ending_at_once, finishing_first
from snet_cli.errors import RequirementError
from snet_cli.workflows.reporter import Tick
from tests.command import Snet

HEAVY = ("torch", "scipy", "matplotlib", "pandas")


def modules_after(*args: str, cwd: Path) -> set[str]:
    """Modules that are imported when `snet` ran with these arguments in a fresh interpreter."""
    code = (
        "import sys; from snet_cli.cli.main import main; code = main(sys.argv[1:]); "
        "print(code, *sys.modules, file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=cwd, check=True)
    code_and_modules = ran.stderr.splitlines()[-1].split()
    assert code_and_modules[0] == "0"
    return set(code_and_modules[1:])


def test_help_and_info_import_nothing_heavy(snet: Snet, tmp_path: Path) -> None:
    assert snet("simulate", "pendulum", "--trajectories", 2, "-o", "a.h5").code == 0
    help_modules = modules_after("--help", cwd=tmp_path)
    assert not help_modules.intersection({*HEAVY, "numpy", "h5py", "pydantic", "yaml"})
    assert not modules_after("info", "a.h5", cwd=tmp_path).intersection({*HEAVY, "yaml"})
    assert not modules_after("simulate", "--list", cwd=tmp_path).intersection(HEAVY)


@pytest.mark.bench
@pytest.mark.parametrize(("args", "limit"), [(["--help"], 0.3), (["info", "a.h5"], 0.5)])
def test_short_commands_are_quick(snet: Snet, tmp_path: Path, args: list[str], limit: float) -> None:
    assert snet("simulate", "pendulum", "--trajectories", 2, "-o", "a.h5").code == 0
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "snet_cli", *args], capture_output=True, cwd=tmp_path, check=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) <= limit


def test_the_library_has_every_public_name_lazily() -> None:
    code = "import sys, snet_cli; print(sorted(m for m in ('torch', 'numpy', 'h5py') if m in sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
    for name in snet_cli.__all__:
        assert getattr(snet_cli, name) is not None
    with pytest.raises(AttributeError, match="module 'snet_cli' has no attribute 'nonsense'"):
        snet_cli.nonsense  # noqa: B018


def test_the_version_is_that_of_the_distribution(snet: Snet) -> None:
    from importlib.metadata import version

    assert snet("--version").out == f"snet {snet_cli.__version__}\n"
    assert version("snet-ode") == snet_cli.__version__


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_shows_an_example(snet: Snet, command: str) -> None:
    ran = snet(command, "--help")
    assert ran.code == 0
    assert f"\n    snet {command} " in ran.out
    assert "--json" in ran.out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_of_the_help_are_understood(snet: Snet, command: str) -> None:
    import importlib
    import shlex

    for line in importlib.import_module(COMMANDS[command][0]).EXAMPLES:
        for part in line.split("&&"):
            name, *args = shlex.split(part)[1:]
            if name in ("info", "--list") or "--list" in args:
                continue
            ran = snet(name, *args, "--show-config")
            assert ran.code == 0, ran.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no command was given.\nThere are simulate, import, info, fit, evaluate, compare; see 'snet --help'.\n"),
        (["fitt"], "there is no command 'fitt'.\nDid you mean 'snet fit'?\n"),
        (["info", "--chekc", "a"], "snet info: there is no option '--chekc'.\nDid you mean '--check'?\n"),
        (["info", "a", "b"], "snet info: got unexpected extra argument"),
        (["fit"], "the argument TRAIN is missing.\nFor example: snet fit train.h5 -o model.h5\n"),
        (["fit", "a.h5"], "the name of the output is missing.\nAdd it: -o model.h5\n"),
        (["fit", "a.h5", "-o"], "snet fit: option '-o' requires an argument.\nSee 'snet fit --help'.\n"),
        (["fit", "a.h5", "-o", "-", "--json"], "-o - and --json both write to stdout.\n"),
        (["fit", "-q", "-v", "a.h5", "-o", "m.h5"], "--quiet and --verbose contradict each other.\n"),
    ],
)
def test_wrong_usage_is_two_lines_and_exit_2(snet: Snet, args: list[str], message: str) -> None:
    ran = snet(*args)
    assert ran.code == 2
    assert ran.err.startswith(f"error: {message}")
    assert ran.err.count("\n") == 2


def test_an_error_stands_in_the_json_too(snet: Snet) -> None:
    ran = snet("info", "none.h5", "--json")
    assert ran.code == 3
    assert ran.json == {"error": {"code": "data", "message": "none.h5: no such file.", "hint": "Check the path."}}
    assert snet("info", "--jsn", "--json").json["error"]["code"] == "usage"


def test_json_may_come_from_the_environment(snet: Snet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNET_JSON", "1")
    assert snet("info", "none.h5").json["error"]["code"] == "data"
    monkeypatch.setenv("SNET_JSON", "0")
    assert snet("info", "none.h5").out == ""


def test_a_bug_is_exit_1_with_a_traceback_and_how_to_report_it(
    snet: Snet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("\x1b[31mboom")

    monkeypatch.setattr("snet_cli.cli.info.info", broken)
    ran = snet("info", "a.h5", "--json")
    assert ran.code == 1
    assert "Traceback" in ran.err
    assert "Please report it" in ran.err
    assert "\x1b" not in ran.err
    assert ran.json["error"]["code"] == "internal"


@pytest.mark.parametrize(
    ("raised", "code"),
    [(KeyboardInterrupt(), 130), (Interrupted(15), 143), (Interrupted(1), 129), (BrokenPipeError(), 141)],
)
def test_how_interruptions_end(
    snet: Snet,
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    code: int,
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise raised

    monkeypatch.setattr("snet_cli.cli.info.info", interrupted)
    ran = snet("info", "a.h5")
    assert ran.code == code
    assert "Traceback" not in ran.err


def test_signals_end_at_once_or_after_the_step() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught, ending_at_once():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.exit_code == 143
    with pytest.raises(Interrupted), finishing_first():
        os.kill(os.getpid(), signal.SIGHUP)  # nobody looks at the flag yet
    with finishing_first() as stop:
        stop.awaited = True
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop
        assert stop.exit_code == 129
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with finishing_first() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)


def test_names_are_shown_and_never_sent() -> None:
    assert clean("a\x1b[2Jb\r\n\udce9") == "a\\x1b[2Jb\\r\n\\udce9"


def test_json_has_no_nan() -> None:
    import numpy as np

    tree = {"a": float("nan"), "b": np.array([1.0, np.inf]), "c": np.int64(3), "d": (True, None)}
    assert jsonable(tree) == {"a": None, "b": [1.0, None], "c": 3, "d": [True, None]}


def test_progress_tells_iteration_residual_speed_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    tick = Tick("training", 120, 480, residual=1.234e-4, ms_each=3.14159, seconds_left=75.0)
    assert progress_line(tick) == "training 120/480  R 1.23e-04  3.14 ms each  1 min 15 s left"
    console = Console()
    console.progress(tick)  # no terminal, and the first 30 s are silent
    assert capsys.readouterr().err == ""
    assert [duration(s) for s in (3.4, 200, 7500)] == ["3 s", "3 min 20 s", "2 h 5 min"]


def test_a_live_line_is_rewritten(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snet_cli.cli.console._is_terminal", lambda stream: True)
    console = Console()
    console.progress(Tick("training", 1, 2))
    console.progress(Tick("training", 2, 2))
    console.note("done")
    first, second, rest = capsys.readouterr().err.partition("\rtraining 2/2")
    assert first.startswith("\rtraining 1/2")
    assert second
    assert rest.rstrip(" \n").endswith("\nnote: done")


def test_colour_only_on_a_terminal_without_no_color(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snet_cli.cli.console._is_terminal", lambda stream: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    Console().error(RequirementError("no"))
    assert capsys.readouterr().err == "\x1b[1;31merror:\x1b[0m no\n"
    monkeypatch.setenv("NO_COLOR", "1")
    Console().error(RequirementError("no"))
    assert capsys.readouterr().err == "error: no\n"


def test_a_result_that_is_not_good_enough_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    console, failure = Console(as_json=True), RequirementError("mse is 3.", "Train longer.")
    console.result({"mse": 3.0}, ["mse 3"], failure)
    console.error(failure)
    printed = json.loads(capsys.readouterr().out)
    assert printed["mse"] == 3.0
    assert printed["error"]["code"] == "requirement"


def test_python_m_snet_cli_is_the_same_program(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-m", "snet_cli", "fitt"], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr == "error: there is no command 'fitt'.\nDid you mean 'snet fit'?\n"


def test_main_takes_the_processes_arguments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["snet", "--version"])
    assert main() == 0
