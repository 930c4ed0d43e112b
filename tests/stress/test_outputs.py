"""Whatever is killed or fails while it writes: its output is absent, old, or complete.

Short forms run by default, the long ones with `-m stress`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snet_cli.cli.main import main
from snet_cli.data.checkpoint_file import load_checkpoint
from snet_cli.data.outputs import write_atomic
from snet_cli.data.trajectory_file import decode_trajectories, encode_trajectories, load_trajectories, save_trajectories
from snet_cli.errors import SnetError
from snet_cli.workflows.resume import previous_path, state_path
from tests.children import leftovers, limit_file_size, run_child
from tests.command import Snet
from tests.kills import sha256
from tests.sample_files import same, sample_trajectories
from tests.training_cases import spirals

FIT = ("fit", "a.h5", "--method", "delta", "--model", "mlp", "--set", "model.hidden=[4]", "--order", 5, "--threads", 1)
FIT += ("--elements", 1, "--iterations", 2, "--checkpoint-every", "1it", "-o")

COMMANDS: dict[str, tuple[object, ...]] = {
    "simulate": ("simulate", "vehicle", "--trajectories", 3, "--samples", 20, "-o"),
    "import": ("import", "a.csv", "--states", "x", "-o"),
    "evaluate": ("evaluate", "m.h5", "a.h5", "--plot", "pictures", "-o"),
    "fit": FIT,
}

OLD = b"old"


def rounds(short: int, long: int) -> pytest.MarkDecorator:
    """The short form, and the long one under the marker `stress`."""
    return pytest.mark.parametrize("count", [short, pytest.param(long, marks=pytest.mark.stress)])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recordings as HDF5 and CSV, and a model."""
    folder = tmp_path_factory.mktemp("made")
    save_trajectories(folder / "a.h5", spirals(3, 20))
    rows = "".join(f"{k / 10},{np.sin(k / 10)}\n" for k in range(2000))
    (folder / "a.csv").write_text(f"t,x\n{rows}")
    here = os.getcwd()
    os.chdir(folder)
    try:
        for words in (
            (*FIT, "m.h5", "-q"),
            (*COMMANDS["evaluate"], "f.h5", "-q"),
            (*COMMANDS["simulate"], "s.h5", "-q"),
        ):
            assert main([str(word) for word in words]) == 0  # here, so that children import nothing
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def inputs(snet: Snet, made: Path) -> list[str]:
    """A working folder of one's own with the inputs in it."""
    for name in ("a.h5", "a.csv", "m.h5"):
        shutil.copy(made / name, name)
    return sorted(os.listdir())


def remove_outputs(output: str) -> None:
    for path in (output, state_path(output), previous_path(output)):
        Path(path).unlink(missing_ok=True)
    shutil.rmtree("pictures", ignore_errors=True)


# killed


@pytest.mark.parametrize(
    "command", ["import", *(pytest.param(c, marks=pytest.mark.slow) for c in ("simulate", "evaluate"))]
)
@rounds(1, 28)
def test_a_killed_command_leaves_its_output_old_absent_or_complete(
    inputs: list[str], command: str, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    words, rng = COMMANDS[command], np.random.default_rng(7)
    straight = run_child((*words, "straight.h5"))
    assert straight.code == 0, straight.said
    wanted, counts = sha256("straight.h5"), Counter[str]()
    while counts["killed"] < count:
        remove_outputs("out.h5")
        before = rng.random() < 0.5
        if before:
            Path("out.h5").write_bytes(OLD)
        ended = run_child((*words, "out.h5", "-f"), after=float(rng.uniform(0.0, straight.seconds)))
        assert ended.code in (0, None), ended.said
        counts["killed"] += ended.code is None
        if not os.path.exists("out.h5"):
            assert not before
            counts["absent"] += 1
        elif Path("out.h5").read_bytes() == OLD:
            counts["old"] += 1
        else:
            assert sha256("out.h5") == wanted
            counts["complete"] += 1
        for picture in Path("pictures").glob("*.png"):
            assert picture.read_bytes().endswith(b"IEND\xaeB`\x82")
    assert run_child((*words, "out.h5", "-f")).code == 0
    assert leftovers() == []  # swept by the next writer
    with capsys.disabled():
        print(f"\n{command}: {dict(counts)}")


@pytest.mark.stress
def test_a_killed_comparison_leaves_complete_files_and_goes_on(
    inputs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """16 kills, each of the comparison as far as it had come by then."""
    words: tuple[object, ...] = (
        "compare",
        "a.h5",
        "--test",
        "a.h5",
        "-o",
        "out",
        "--methods",
        "delta,alpha",
        "--iterations",
        3,
    )
    words += ("--set", "model.hidden=[4]", "--set", "order=5", "--set", "elements=1", "--threads", 1)
    straight = run_child(words)
    assert straight.code == 0, straight.said
    rng, kills = np.random.default_rng(3), 0
    while kills < 16:
        shutil.rmtree("out", ignore_errors=True)
        code: int | None = None
        while code is None:
            ended = run_child(
                (*words, "--resume"), after=float(rng.uniform(0, straight.seconds)) if kills < 16 else None
            )
            code = ended.code
            kills += code is None
            for path in Path("out").rglob("*"):
                _require_complete(path)
        assert code == 0, ended.said
    with capsys.disabled():
        print(f"\ncompare: {kills} kills, every file complete, every comparison went on to its end")


def _require_complete(path: Path) -> None:
    if path.name.startswith(".snet-") or path.is_dir():
        return
    if path.suffix == ".json":
        json.loads(path.read_text("utf-8"))
    elif path.suffix == ".png":
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82"), path
    elif path.suffix == ".h5":
        load_checkpoint(path)
    else:
        assert path.read_bytes().endswith(b"\n"), path


# full disks and faults


def check_failed_or_done(command: str, code: int | None, said: str, old: bool) -> str:
    """Exit 5 with the old output intact, or 0 with a complete one; never a temporary file."""
    assert code in (0, 5), said
    assert "Traceback" not in said
    assert [name for name in leftovers() if name.endswith(".tmp")] == []
    content = Path("out.h5").read_bytes() if os.path.exists("out.h5") else None
    if content is None or content == OLD:
        assert code == 5
        assert old == (content is not None)
        return "old" if old else "absent"
    if command == "fit":
        load_checkpoint(content)  # what cannot be written may be the state beside a model that is complete
    else:
        decode_trajectories(content, "out.h5")
    return f"complete, exit {code}"


@pytest.mark.parametrize("command", COMMANDS)
@rounds(1, 20)
def test_a_limit_on_file_sizes_is_exit_5(
    inputs: list[str], command: str, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    counts: Counter[str] = Counter()
    for number, size in enumerate(np.geomspace(1_000, 60_000, count).astype(int)):
        remove_outputs("out.h5")
        old = number % 2 == 0
        if old:
            Path("out.h5").write_bytes(OLD)
        ended = run_child((*COMMANDS[command], "out.h5", "-f"), before=limit_file_size(int(size)))
        counts[check_failed_or_done(command, ended.code, ended.said, old)] += 1
    with capsys.disabled():
        print(f"\n{command}, limit on file sizes: {dict(counts)}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Any]:
    """Mounts a disk of a given size under `disk`, as often as asked."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: int) -> Path:
        unmount()
        words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
        try:
            done = subprocess.run(words, capture_output=True)
        except OSError:
            pytest.skip("no disk can be mounted here; the test with limits on file sizes stands for it")
        if done.returncode:
            pytest.skip("no disk can be mounted here; the test with limits on file sizes stands for it")
        return folder

    def unmount() -> None:
        if folder.is_mount():
            subprocess.run(["umount", str(folder)], check=True)

    yield mount
    unmount()


@pytest.mark.parametrize("command", COMMANDS)
@rounds(1, 20)
def test_a_full_disk_is_exit_5(
    inputs: list[str], disk: Any, command: str, count: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Disks of one page and more, each too small or just large enough for inputs and output."""
    counts: Counter[str] = Counter()
    here = os.getcwd()
    need = sum(-(-os.path.getsize(name) // 4096) for name in inputs)
    for pages in np.linspace(need + 1, need + 60, count).astype(int):
        folder = disk(4096 * int(pages))
        for name in inputs:
            shutil.copy(name, folder / name)
        (folder / "out.h5").write_bytes(OLD)
        words = (*COMMANDS[command], "out.h5", "-f")
        ended = run_child(words, before=lambda: os.chdir(here + "/disk"))
        os.chdir(folder)
        try:
            counts[check_failed_or_done(command, ended.code, ended.said, True)] += 1
        finally:
            os.chdir(here)
    with capsys.disabled():
        print(f"\n{command}, full disk: {dict(counts)}")


CALLS = ("open", "write", "fsync", "replace")


class Fault:
    """Lets the n-th call of a function of `os` on an output fail; scratch files of Python itself are no outputs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, call: str, n: int, number: int) -> None:
        self.left, self.fired, self.at = n, False, ""
        original, places = getattr(os, call), {tempfile.gettempdir(), os.devnull}

        def wrapped(*args: Any, **options: Any) -> Any:
            scratch = call == "open" and (
                places & {args[0], os.path.dirname(args[0])} or args[1] & os.O_TMPFILE == os.O_TMPFILE
            )
            if not scratch and (call != "open" or args[1] & (os.O_WRONLY | os.O_RDWR)):
                self.left -= 1
                if self.left == 0:
                    self.fired, self.at = True, str(args[0])
                    raise OSError(number, os.strerror(number))
            return original(*args, **options)

        monkeypatch.setattr(os, call, wrapped)


@pytest.mark.parametrize(
    ("command", "call"),
    [
        ("fit", "replace"),
        *(("simulate", call) for call in CALLS),
        *(pytest.param("fit", call, marks=pytest.mark.slow) for call in CALLS if call != "replace"),
    ],
)
def test_a_fault_at_any_call_is_exit_5(
    inputs: list[str], snet: Snet, monkeypatch: pytest.MonkeyPatch, command: str, call: str
) -> None:
    _fail_at_every_call(snet, monkeypatch, command, call, (errno.ENOSPC,))


@pytest.mark.stress
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("call", CALLS)
def test_any_fault_at_any_call_is_exit_5(
    inputs: list[str], snet: Snet, monkeypatch: pytest.MonkeyPatch, command: str, call: str, capsys: Any
) -> None:
    numbers = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)[: 1 if command == "evaluate" else 4]
    tried = _fail_at_every_call(snet, monkeypatch, command, call, numbers)
    with capsys.disabled():
        print(f"\n{command}: {tried} faults in {call}")


def _fail_at_every_call(
    snet: Snet, monkeypatch: pytest.MonkeyPatch, command: str, call: str, errors: Sequence[int]
) -> int:
    tried = 0
    for number in errors:
        for n in range(1, 1000):
            remove_outputs("out.h5")
            old = n % 2 == 0 or command == "fit"
            if old:
                Path("out.h5").write_bytes(OLD)
            with monkeypatch.context() as patched:
                fault = Fault(patched, call, n, number)
                ran = snet(*COMMANDS[command], "out.h5", "-f")
            check_failed_or_done(command, ran.code, ran.err, old)
            if not fault.fired:
                break
            tried += 1
    return tried


@pytest.mark.stress
@pytest.mark.parametrize("call", CALLS)
def test_any_fault_in_a_comparison_is_exit_5(
    inputs: list[str], snet: Snet, monkeypatch: pytest.MonkeyPatch, call: str, capsys: Any
) -> None:
    """Its own files and those of its rows; what a method's process writes is what `fit` writes."""
    words = ("compare", "--test", "a.h5", "--checkpoints", "m.h5", "-o", "out", "-f", "--threads", 1)
    assert snet(*words).code == 0
    old = [path for path in Path("out").rglob("*.*") if path.name != "row.json"]  # --force makes every row anew
    for n in range(1, 1000):
        with monkeypatch.context() as patched:
            fault = Fault(patched, call, n, errno.ENOSPC)
            ran = snet(*words)
        if not fault.fired:
            break
        # 0: a folder's own fsync is best effort
        assert ran.code == 5 or (ran.code, call) == (0, "fsync"), (n, fault.at, ran.err)
        assert "Traceback" not in ran.err
        for path in Path("out").rglob("*"):
            assert not path.name.endswith(".tmp")
            _require_complete(path)
        assert all(Path(path).exists() for path in old)
    assert n > 1
    assert ran.code == 0, ran.err
    with capsys.disabled():
        print(f"\ncompare: {n - 1} faults in {call}")


# many at once


@rounds(1, 60)
def test_readers_never_see_a_torn_file(inputs: list[str], count: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Eight writers and four readers on one file, for so many seconds."""
    contents = [sample_trajectories(seed) for seed in range(8)]
    images = [encode_trajectories(one) for one in contents]
    write_atomic("shared.h5", images[0])
    end = time.monotonic() + count
    children = [_child(_write_until, end, image) for image in images]
    readers = [_child(_read_until, end, contents) for _ in range(4)]
    tallies = [_wait(child) for child in (*children, *readers)]
    writes, reads = sum(tallies[:8]), sum(tallies[8:])
    assert min(tallies) > 0, tallies
    assert leftovers() == []
    with capsys.disabled():
        print(f"\n{writes} writes and {reads} reads of one file in {count} s, none torn")


def _child(work: Any, *args: Any) -> tuple[int, int]:
    ours, theirs = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            os.write(theirs, str(work(*args)).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    return child, ours


def _wait(child: tuple[int, int]) -> int:
    with os.fdopen(child[1]) as pipe:
        said = pipe.read()
    os.waitpid(child[0], 0)
    return int(said or -1)


def _write_until(end: float, image: bytes) -> int:
    done = 0
    while done == 0 or time.monotonic() < end:
        write_atomic("shared.h5", image, force=True)
        done += 1
    return done


def _read_until(end: float, contents: Sequence[Any]) -> int:
    done = 0
    while done == 0 or time.monotonic() < end:  # once on a machine that is busy all the time
        try:
            found = load_trajectories("shared.h5")
        except SnetError:
            return -1
        if not any(same(found, one) for one in contents):
            return -1
        done += 1
    return done


def test_a_second_run_on_one_output_is_refused_at_once(inputs: list[str], snet: Snet) -> None:
    words = [*FIT[:-5], "--iterations", 100_000, "-o", "out.h5"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        first = os.fork()
    if first == 0:
        try:
            main([str(word) for word in (*words, "-q", "--set", "theta_step.name=adam")])
        finally:
            os._exit(0)
    try:
        while not os.path.exists("out.h5.resume"):
            time.sleep(0.01)
        begin = time.monotonic()
        ran = snet(*words, "-f")
        assert (ran.code, time.monotonic() - begin < 2.0) == (5, True)
        assert "out.h5: is in use: another snet is writing it." in ran.err
    finally:
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
