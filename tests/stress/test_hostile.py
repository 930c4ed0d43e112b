"""Files and places that were made, or happen, to be bad: refused in one second and 300 MB, without a traceback."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from snet_cli.cli.main import main
from snet_cli.data.checkpoint_file import save_checkpoint
from snet_cli.data.trajectory_file import save_trajectories
from tests.children import Ended, run_child
from tests.command import Snet
from tests.sample_files import edited, sample_checkpoint
from tests.stress.test_outputs import FIT
from tests.test_guard import HOSTILE
from tests.training_cases import spirals

SECONDS, MEGABYTES = 1.0, 300.0

MATLAB_HEAD = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"

Make = Callable[[], None]


def require_refused(words: tuple[object, ...], codes: tuple[int, ...], message: str = "") -> Ended:
    """One of the exit codes, in the time and the memory that a refusal may take."""
    ended = run_child(words, limit=120.0)
    assert ended.code in codes, (words, ended.code, ended.said)
    assert "Traceback" not in ended.said
    assert message in ended.said
    assert len(ended.said.splitlines()) <= 2
    assert ended.grew_mb < MEGABYTES, (words, ended.grew_mb)
    assert ended.seconds < SECONDS or os.getloadavg()[0] > 2 * (os.cpu_count() or 1), (words, ended.seconds)
    return ended


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recording and a model; everything that the commands import is imported in this process."""
    folder = tmp_path_factory.mktemp("made")
    save_trajectories(folder / "good.h5", spirals(2, 20))
    here = os.getcwd()
    os.chdir(folder)
    try:
        for words in (("fit", "good.h5", *FIT[2:], "model.h5", "-q"), ("evaluate", "model.h5", "good.h5", "-q")):
            assert main([str(word) for word in words]) == 0
        assert main(["import", "none.mat", "-o", "x.h5"]) == 3
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def warm(snet: Snet, made: Path) -> Snet:
    """`snet` in a folder of its own with `good.h5` and `model.h5` in it."""
    for name in ("good.h5", "model.h5"):
        shutil.copy(made / name, name)
    return snet


COMMANDS: list[tuple[tuple[object, ...], int]] = [
    pytest.param(("info", "bad.h5"), 3, marks=pytest.mark.stress),  # type: ignore[list-item]
    pytest.param(("fit", "bad.h5", "-o", "m.h5"), 3, marks=pytest.mark.stress),  # type: ignore[list-item]
    pytest.param(("evaluate", "bad.h5", "good.h5"), 4, marks=pytest.mark.stress),  # type: ignore[list-item]
    pytest.param(("evaluate", "model.h5", "bad.h5"), 3, marks=pytest.mark.stress),  # type: ignore[list-item]
    pytest.param(("import", "bad.h5", "-o", "m.h5"), 3, marks=pytest.mark.stress),  # type: ignore[list-item]
]


@pytest.mark.parametrize(("words", "code"), COMMANDS, ids=lambda value: str(value)[:40])
def test_the_hostile_set_is_refused_by_every_command(
    warm: Snet, tmp_path: Path, words: tuple[object, ...], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = _try_all(HOSTILE, words, code, tmp_path)
    with capsys.disabled():
        print(f"\n{words[0]}: {_worst(ended)}")


def test_a_part_of_the_hostile_set_is_refused_by_info(warm: Snet, tmp_path: Path) -> None:
    _try_all(HOSTILE[::7], ("info", "bad.h5"), 3, tmp_path)


def _worst(ended: list[Ended]) -> str:
    slowest, largest = max(one.seconds for one in ended), max(one.grew_mb for one in ended)
    return f"{len(ended)} files refused in at most {slowest:.2f} s and {largest:.0f} MB"


def _try_all(hostile: list[Any], words: tuple[object, ...], code: int, tmp_path: Path) -> list[Ended]:
    ended = []
    for change, message in hostile:
        if "bad.h5" in words[:2] and words[0] == "evaluate":
            _hostile_checkpoint(change)
        else:
            edited(tmp_path / "bad.h5", change)
        ended.append(require_refused(words, (code,), message if "y_x" not in message else ""))
    return ended


def _hostile_checkpoint(change: Callable[[h5py.File], Any]) -> None:
    """The same tampering with a checkpoint: what it does to `time` and `y_x`, it does to arrays of these names."""
    save_checkpoint("bad.h5", sample_checkpoint(), force=True)
    with h5py.File("bad.h5", "r+") as file:
        for name in ("time", "y_x"):
            file.create_dataset(name, data=np.ones(54), chunks=(54,), compression=4)
        change(file)


def test_hostile_matlab_files_are_refused(warm: Snet) -> None:
    """MAT v7.3 is HDF5 behind 512 bytes; the same guard looks at it."""
    for change, _ in HOSTILE[:5]:
        with h5py.File("bad.mat", "w", userblock_size=512) as file:
            for name in ("time", "y_x"):
                file[name] = np.ones(54)
            change(file)
        with open("bad.mat", "r+b") as stream:
            stream.write(MATLAB_HEAD)
        require_refused(("import", "bad.mat", "-o", "o.h5", "--states", "x=y_x", "--time", "time"), (3,))


@pytest.mark.stress
def test_a_million_groups_are_refused_by_every_command(warm: Snet, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File("bad.h5", "w", libver="latest") as file:
        for number in range(1_000_000):
            h5py.h5g.create(file.id, str(number).encode())
    ended = []
    for words, code in (case.values for case in COMMANDS):  # type: ignore[attr-defined]
        ended.append(require_refused(words, (code,), "holds more than 10000 objects"))
    with capsys.disabled():
        print(f"\na million groups: {_worst(ended)}")


def _bombs() -> dict[str, tuple[bytes, tuple[object, ...], int, str]]:
    aliases = b"a: &a [1,1,1,1,1,1,1,1,1]\n" + b"".join(b"b%d: &b%d [*a,*a]\n" % (k, k) for k in range(60))
    config = ("fit", "good.h5", "-o", "o.h5", "-c", "bad")
    return {
        "a YAML bomb": (aliases, config, 2, "anchors (&) and aliases (*) are not read."),
        "deep nesting": (b"a: " + b"[" * 5000, config, 2, "the nesting is deeper than 16."),
        "deep nesting of mappings": (b"a: " + b"{b: " * 5000, config, 2, "the nesting is deeper than 16."),
        "a large configuration": (b"#" * 2_000_000, config, 2, "more than 1000000."),
        "a tag that makes objects": (b"a: !!python/object/apply:os.system [ls]", config, 2, "tags such as"),
        "a layer of 1e9": (b"model: {name: mlp, hidden: [1000000000]}", config, 2, "hidden"),
        "1e9 layers": (b"model: {name: mlp, hidden: " + str([4096] * 9).encode() + b"}", config, 2, "hidden"),
        "a pickle named .h5": (pickle.dumps({"a": 1}), ("info", "bad"), 3, "is a Python pickle"),
        "a pickle as a model": (pickle.dumps({"a": 1}), ("evaluate", "bad", "good.h5"), 4, "is a Python pickle"),
    }


@pytest.mark.parametrize("name", _bombs())
def test_bombs_are_refused(warm: Snet, name: str) -> None:
    content, words, code, message = _bombs()[name]
    Path("bad").write_bytes(content)
    require_refused(words, (code,), message)


@pytest.mark.parametrize("name", ["..", ".", "a/../../x", "/etc/passwd"])
def test_weights_with_names_like_paths_are_refused(warm: Snet, name: str) -> None:
    """HDF5 itself reads "/" as its own path: such a name ends as groups, which no checkpoint has."""
    save_checkpoint("bad.h5", sample_checkpoint())
    with h5py.File("bad.h5", "r+") as file:
        try:
            file["model/state"].create_dataset(name, data=np.ones(3), chunks=(3,), compression=4)
        except ValueError:
            pytest.skip("HDF5 does not write this name")
    require_refused(("evaluate", "bad.h5", "good.h5"), (4,))


# places and names

NAMES = ("a b", "a\nb", "Prüfstand ✓", "x" * 255, "-n", "'")


@pytest.mark.parametrize(
    "name",
    [os.fsdecode(b"\xff\xfe.h5"), "\x1b[31mred", *(pytest.param(name, marks=pytest.mark.stress) for name in NAMES)],
)
def test_names_of_every_kind_go_through_every_command(warm: Snet, name: str) -> None:
    """As output, as input, refused as existing: no traceback, nothing sent to the terminal that is no text."""
    path = f"./{name}"
    for words in (
        ("simulate", "pendulum", "--trajectories", 2, "-o", path),
        ("info", path),
        ("simulate", "pendulum", "-o", path),
        ("evaluate", path, path),
        ("import", path, "-o", "merged.h5", "-f"),
        ("fit", path, "-o", path, "-f"),
    ):
        ran = warm(*words)
        assert ran.code in (0, 3, 4, 5), ran.err
        for text in (ran.out, ran.err):
            assert "Traceback" not in text
            assert "\x1b" not in text
            text.encode("utf-8")


@pytest.mark.parametrize("words", [("simulate", "pendulum", "-o"), ("import", "a.csv", "--states", "x", "-o"), FIT])
def test_places_that_cannot_be_written_are_exit_5(warm: Snet, words: tuple[object, ...]) -> None:
    os.mkdir("folder")
    Path("a.csv").write_text("t,x\n0,1\n1,2\n")
    shutil.copy("good.h5", "a.h5")
    for target in ("folder", "none/o.h5", "a.csv/o.h5", "folder/", "/dev/null", "é" * 128, "x" * 300):
        ran = warm(*words, target, "-f")
        assert ran.code == 5, (target, ran.err)
        assert "Traceback" not in ran.err
    assert os.listdir("folder") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not write")
def test_a_read_only_folder_is_exit_5(warm: Snet, tmp_path: Path) -> None:
    def become_nobody() -> None:
        os.setgid(65534)
        os.setuid(65534)

    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o001:
            break
        folder.chmod(0o755)
    ended = run_child(("simulate", "pendulum", "-o", "o.h5"), before=become_nobody)
    assert ended.code == 5, ended.said
    assert "is not writable. " in ended.said.replace("\n", " ")


def test_a_locale_without_characters_is_no_traceback(tmp_path: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for name in ("Prüfstand.h5", os.fsdecode(b"\xff.h5")):
        words = [sys.executable, "-m", "snet_cli", "info", name]
        ran = subprocess.run(words, capture_output=True, cwd=tmp_path, env=environment, timeout=60)
        assert ran.returncode == 3, ran.stderr
        assert b"Traceback" not in ran.stderr


LARGE = ("simulate", "vehicle", "--trajectories", 8000, "-o", "large.h5", "-f")

WIDE = ("--method", "delta", "--set", "model.hidden=[2048,512]", "--order", 5, "--elements", 1, "--iterations", 2)

LIMITED: dict[str, tuple[object, ...]] = {
    "info": ("info", "good.h5"),
    "fit": ("fit", "good.h5", *FIT[2:], "o.h5", "-f"),
    "simulate": LARGE,
    "fit of 48000 rows": ("fit", "wide.h5", *WIDE, "-o", "o.h5", "-f"),
    "import": ("import", "wide.csv", "-o", "o.h5", "-f", "--states", "x"),
    "evaluate": ("evaluate", "model.h5", "good.h5"),
}


@pytest.mark.parametrize(
    ("gigabytes", "commands"),
    [
        (0.2, ["info", "fit"]),
        *(
            pytest.param(limit, list(LIMITED), marks=pytest.mark.stress)
            for limit in (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
        ),
    ],
)
def test_a_limit_on_address_space_is_an_error_and_never_a_kill(
    warm: Snet, gigabytes: float, commands: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands in processes of their own, small ones and some that need more than the smaller limits leave."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (int(gigabytes * 1e9),) * 2)

    if "import" in commands:
        save_trajectories("wide.h5", spirals(2400, 20))
        Path("wide.csv").write_text("t,x\n" + "".join(f"{row},1.5\n" for row in range(2_000_000)))
    codes = {}
    for name in commands:
        line = [sys.executable, "-m", "snet_cli", *map(str, LIMITED[name])]
        ran = subprocess.run(line, capture_output=True, text=True, preexec_fn=limited, timeout=300)
        assert ran.returncode in (0, 2, 6), (name, ran.stderr)
        assert "Traceback" not in ran.stderr
        assert ran.returncode == 0 or "memory" in ran.stderr or "address space" in ran.stderr, ran.stderr
        codes[name] = ran.returncode
    with capsys.disabled():
        print(f"\n{gigabytes} GB: exit codes {codes}")
