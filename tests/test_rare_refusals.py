"""More errors that are seldom seen, of options, of files that change under the reader, and of teams of processes.

What two processes tell each other is tested in `test_distributed`, through processes; here stands what needs another
machine: a torch without gloo, fewer GPUs than processes, a memory that does not suffice.
"""

from __future__ import annotations

import csv
import errno
import resource
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import filelock
import h5py
import numpy as np
import pytest
import torch
from pydantic import BaseModel

from snet_cli.config.layers import Sources, resolve
from snet_cli.data import guard
from snet_cli.data.channel_spec import check_name
from snet_cli.data.constants import known_constants
from snet_cli.data.csv_rows import malformed
from snet_cli.data.trajectory_file import load_trajectories, save_trajectories
from snet_cli.distributed import Place, Processes, joined_processes
from snet_cli.distributed.processes import _require_backends
from snet_cli.errors import CheckpointError, DataError, OutputError, ProcessLostError, UsageError
from snet_cli.training.options import FitOptions
from snet_cli.workflows import bands, compare, ensemble
from snet_cli.workflows.methods import resolve_method
from snet_cli.workflows.metrics_file import MetricsFile
from tests.command import Snet
from tests.sample_files import plain_trajectories
from tests.training_cases import spirals

TABLE = ("import", "a.csv", "-o", "o.h5", "--states")

WRONG: list[tuple[tuple[object, ...], int, str]] = [
    (("fit", "a.h5", "-o", "m.h5", "-c", "."), 2, ".: the configuration cannot be read (Is a directory)."),
    (
        ("fit", "a.h5", "-o", "m.h5", "-c", "five.yaml", "--set", "theta_step.rate=1"),
        2,
        "--set theta_step.rate: 'theta_step' is 5, expected a mapping.",
    ),
    (
        ("fit", "a.h5", "-o", "m.h5", "--set", "model={name: 5}"),
        2,
        "--set model.name is 5, expected the name of a model.",
    ),
    ((*TABLE, "x,=x"), 2, "--states"),
    (("import", "a.csv/b.csv", "-o", "o.h5", "--states", "x"), 3, "a.csv/b.csv: the file cannot be read (Not a dir"),
    (
        ("compare", "a.h5", "--test", "others.h5", "-o", "out", "--methods", "delta"),
        2,
        "--test others.h5: has none of the outputs of TRAIN (a, b).",
    ),
]


@pytest.fixture
def here(snet: Snet) -> Snet:
    data = spirals(2, 20)
    save_trajectories("a.h5", data)
    names: dict[str, Any] = {"output_names": ("p", "q"), "state_names": None, "units": {}, "noise_std": {}}
    save_trajectories("others.h5", data.__class__(**{**vars(data), **names}))
    Path("a.csv").write_text("t,x\n0,1\n1,2\n")
    Path("five.yaml").write_text("theta_step: 5\n")
    return snet


@pytest.mark.parametrize(("words", "code", "message"), WRONG, ids=[message[:50] for _, _, message in WRONG])
def test_each_says_what_is_wrong(here: Snet, words: tuple[object, ...], code: int, message: str) -> None:
    ran = here(*words)
    assert (ran.code, message in ran.err) == (code, True), ran.err
    assert len(ran.err.splitlines()) <= 2
    assert not Path("o.h5").exists()
    assert not Path("m.h5").exists()


def raises(error: type[Exception], message: str, hint: str = "") -> Any:
    """An error of this class with these words, `hint` among what to do next."""
    return pytest.raises(error, match=rf"(?s)^{message}.*{hint}")


# options


def test_options_that_contradict_each_other(snet: Snet) -> None:
    ran = snet("simulate", "cascaded-tanks", "-o", "o.h5", "--set", "lowest=5", "--set", "highest=4")
    assert (ran.code, "lowest (5) is above highest (4)." in ran.err) == (2, True), ran.err


def test_a_channel_without_a_name() -> None:
    with raises(UsageError, "--states holds an empty name", "--states a,b"):
        check_name("", "--states")


def test_an_option_without_a_default() -> None:
    class Needed(BaseModel):
        width: int

    with raises(UsageError, "width is missing, expected a whole number"):
        resolve(Sources(), (Needed,))


def test_a_limit_on_address_space_that_the_libraries_do_not_fit_in(here: Snet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (100_000_000, resource.RLIM_INFINITY))
    ran = here("info", "a.h5")
    assert (ran.code, "the limit on address space is 0.1 GB, and snet info needs" in ran.err) == (2, True)
    assert "Raise it: ulimit -v " in ran.err


# data


def test_a_constant_that_the_file_does_not_give() -> None:
    with raises(DataError, "the model needs the known constant 'm'; the file has neither param_m", "--model mlp"):
        known_constants(plain_trajectories(), ("m",))


def test_a_file_that_does_not_fit_into_memory(here: Snet, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(guard, "inspect", exhausted)
    with raises(DataError, r"a\.h5: its structure does not fit into memory", "larger machine"):
        load_trajectories("a.h5")


def test_a_user_block_that_the_first_bytes_did_not_show(tmp_path: Path) -> None:
    with (
        h5py.File(tmp_path / "block.h5", "w", userblock_size=512) as file,
        raises(guard.RefusedError, "the HDF5 data stands behind a user block"),
    ):
        guard.inspect(file, 10_000, 10_000)


def test_rows_that_the_csv_reader_gives_up_on() -> None:
    assert "run.csv, line 7: the row is malformed (odd)." in str(malformed(csv.Error("odd"), "run.csv", 7))


def test_an_array_of_dates(snet: Snet) -> None:
    np.savez("run.npz", day=np.array(["2024-01-01", "2024-01-02", "2024-01-03"]), x=np.ones(3))
    ran = snet("import", "run.npz", "-o", "o.h5", "--states", "x", "--time", "day")
    assert (ran.code, "run.npz: 'day' holds <U10, expected real numbers." in ran.err) == (3, True), ran.err


# fit and compare


def test_places_that_stop_being_writable_between_check_and_use(here: Snet, monkeypatch: pytest.MonkeyPatch) -> None:
    with raises(OutputError, r"a\.csv: exists already\.", "--force"):
        MetricsFile.open("a.csv", force=False)
    with raises(OutputError, r"none/a\.csv: cannot be written: No such file"):
        MetricsFile.open("none/a.csv", force=False)
    with raises(DataError, r"none\.h5: cannot be read: No such file"):
        compare._sum_of("none.h5")

    make = Path.mkdir

    def refuse(self: Path, *args: Any, **options: Any) -> None:
        if self.name == "out":
            raise OSError(errno.EROFS, "Read-only file system")
        make(self, *args, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    ran = here("compare", "a.h5", "-o", "out", "--methods", "delta")
    assert (ran.code, "out: the folder cannot be made: Read-only file system." in ran.err) == (5, True), ran.err


def test_a_comparison_without_room_for_temporary_files(here: Snet, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    ran = here("compare", "a.h5", "-o", "out", "--methods", "delta")
    assert (ran.code, "no temporary file can be made: No space left on device." in ran.err) == (5, True), ran.err
    assert "set TMPDIR to another folder" in ran.err


def test_a_row_whose_process_cannot_be_started(here: Snet, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    ran = here("compare", "a.h5", "--test", "a.h5", "-o", "out", "--methods", "delta", "--json")
    assert ran.code == 6, ran.err  # no method has a result
    rows = {row["method"]: row for row in ran.json["rows"]}
    assert rows["delta"]["message"] == ("failed: its process could not be started: Resource temporarily unavailable")
    assert (rows["delta"]["status"], rows["hold"]["test_mse"] > 0) == ("failed", True)
    assert not Path("out/runs/delta/row.json").exists()  # --resume tries it again


def test_an_output_that_cannot_be_locked(here: Snet, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, **_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    ran = here("fit", "a.h5", "-o", "m.h5", "--method", "delta", "--order", 5, "--elements", 1)
    assert (ran.code, "m.h5: cannot be locked: No space left on device." in ran.err) == (5, True), ran.err
    assert not Path("m.h5").exists()


def test_a_description_of_standard_input_without_room(here: Snet, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    with Path("a.h5").open("rb") as stream:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream, isatty=lambda: False))
        ran = here("info", "-")
    assert (ran.code, "no temporary file can be made: No space left on device." in ran.err) == (5, True), ran.err


def test_an_ensemble_of_which_nothing_is_left(here: Snet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensemble, "train_members", lambda plans, *_: [None] * len(plans))
    ran = here("fit", "a.h5", "-o", "m.h5", "--method", "delta", "--order", 5, "--elements", 1, "--seeds", 2)
    assert (ran.code, "every model of the ensemble diverged at its first" in ran.err) == (6, True), ran.err


def test_a_confidence_that_belongs_to_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, checkpoint = torch.nn.Linear(1, 1), SimpleNamespace(extra={})
    trained: Any = SimpleNamespace(model=model, layout=SimpleNamespace(outputs=("x",)))
    for names, stds, message in ((("w",), 1, "of another model"), (("weight", "bias"), 2, "of other outputs")):
        posterior = SimpleNamespace(names=names, sizes=(1,) * len(names), noise_std=np.ones(stds))
        monkeypatch.setattr(bands, "read_posterior", lambda *_, found=posterior: found)
        with raises(CheckpointError, rf"m\.h5: its confidence is that {message}", "Train it again"):
            bands.required_posterior(checkpoint, trained, "m.h5")  # type: ignore[arg-type]


# teams of processes


def launched(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of rank 0 of two, of which the other never comes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return found


def test_commands_and_methods_that_are_one_process(here: Snet, monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch)
    ran = here("info", "a.h5")
    assert (ran.code, "snet info is one process, not 2." in ran.err) == (2, True)
    team: Any = SimpleNamespace(size=2)
    with raises(UsageError, "2 processes cannot read one standard input"):
        Processes.require_files(team, "a.h5", "-")
    parts: Any = SimpleNamespace(
        options=FitOptions(method="anode"),
        setup=SimpleNamespace(layout=None),
        data=SimpleNamespace(train=None),
        team=team,
    )
    with raises(UsageError, "method anode integrates all trajectories in one batch, in one process, not 2"):
        resolve_method(parts)


def test_a_process_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        raises(ProcessLostError, "rank 0 did not find the 1 others: only 1 of 2", "torchrun"),
        joined_processes(limit=0.3, environment=launched(monkeypatch)),
    ):
        pytest.fail("there is nobody to join")


def test_a_connection_that_ends_or_never_answers() -> None:
    team: Any = SimpleNamespace(size=2, rank=1)
    for said, message in (("Connection closed by peer", "has ended"), ("Timed out waiting", "did not answer in time")):

        def lost(said: str = said) -> None:
            raise RuntimeError(said)

        with raises(ProcessLostError, f"one of the 2 processes {message}; rank 1 stops", "--resume"):
            Processes._call(team, lost)


def test_a_rank_with_another_file_is_named() -> None:
    """What rank 1 of two says, to whom rank 0 has told what it has."""
    sent: list[bytes] = []

    def sent_by(rank: int, told: bytes) -> bytes:
        assert rank == 1
        sent.append(told)
        return told

    team: Any = SimpleNamespace(
        size=2, rank=1, from_lead=lambda _: {"TRAIN": "ab"}, largest=lambda number: (number,), _bytes_from=sent_by
    )
    with raises(UsageError, "rank 1 has another TRAIN than rank 0: cd, not ab", "the same files and options"):
        Processes.require_same(team, {"TRAIN": "cd"})
    assert len(sent) == 1


def test_a_torch_or_a_machine_that_cannot_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    two = Place(0, 2, 0, 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    with raises(UsageError, r"2 processes on this machine, which has 1 CUDA device", "for each"):
        _require_backends(two, "cuda")
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with raises(UsageError, "this torch was built without nccl", "--device cpu"):
        _require_backends(two, "cuda")
    monkeypatch.setattr(torch.distributed, "is_gloo_available", lambda: False)
    with raises(UsageError, "this torch was built without gloo", "one process"):
        _require_backends(two, "cpu")
