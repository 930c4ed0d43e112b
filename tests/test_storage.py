"""Bytes in and out: what is no HDF5 file is named, and an output is absent, old or complete."""

from __future__ import annotations

import errno
import io
import os
import pickle
import stat
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snet_cli.data.outputs import check_output, write_atomic
from snet_cli.data.storage import display, read_image
from snet_cli.data.trajectory_file import encode_trajectories, load_trajectories, save_trajectories
from snet_cli.errors import CheckpointError, DataError, OutputError, SnetError, UsageError
from tests.sample_files import same, sample_trajectories

HDF5 = encode_trajectories(sample_trajectories())


def npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.ones(3))
    return stream.getvalue()


def torch_zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({}))
    return stream.getvalue()


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ones(3))
    return stream.getvalue()


FOREIGN = [
    (b"", "is empty, expected an HDF5 file."),
    (pickle.dumps({"a": 1}), "is a Python pickle, expected an HDF5 file."),
    (torch_zip(), "is a PyTorch file (a zip with a pickle), expected an HDF5 file."),
    (npz(), "is a zip archive, expected an HDF5 file."),
    (npy(), "is a NumPy array, expected an HDF5 file."),
    (b"t,x\n0,1\n", "is a text file, expected an HDF5 file."),
    (b"MATLAB 5.0 MAT-file, Platform", "is a MATLAB file, expected an HDF5 file."),
    (b"CDF\x01\x00\x00", "is a netCDF-3 file, expected HDF5."),
    (b"\x00\x01\x02\x03" * 9, "is not an HDF5 file (its first bytes are wrong)."),
    (b"\0" * 512 + HDF5, "the HDF5 data stands behind a user block"),
    (b"\0" * 2048 + HDF5, "the HDF5 data stands behind a user block"),
]


@pytest.mark.parametrize(("content", "message"), FOREIGN, ids=[message[:30] for _, message in FOREIGN])
def test_foreign_files_are_named_whatever_their_suffix(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "data.h5"
    path.write_bytes(content)
    for error in (DataError, CheckpointError):
        with pytest.raises(error) as caught:
            read_image(path, error=error)
        assert message in caught.value.message
        assert caught.value.hint


def test_missing_files_folders_and_odd_paths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.h5: no such file"):
        read_image(tmp_path / "a.h5")
    with pytest.raises(DataError, match="is a directory, expected a file"):
        read_image(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read_image("a\0b")
    with pytest.raises(DataError, match="no such file"):
        read_image(tmp_path / "no" / "a.h5")


def test_large_files_name_the_flag(tmp_path: Path) -> None:
    path = tmp_path / "data.h5"
    path.write_bytes(HDF5)
    with pytest.raises(DataError) as caught:
        read_image(path, max_bytes=100)
    assert f"has {len(HDF5)} bytes, more than the limit of 100." in caught.value.message
    assert f"--max-bytes {len(HDF5)}" in caught.value.hint


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs /dev/zero")
def test_endless_files_end() -> None:
    with pytest.raises(DataError, match="is not an HDF5 file"):
        read_image("/dev/zero")


def test_pipes_by_name_are_read_however_slowly_they_are_written(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write() -> None:
        with open(pipe, "wb", buffering=0) as stream:
            for start in (0, 3, 5000):
                stream.write(HDF5[start : {0: 3, 3: 5000}.get(start)])
                time.sleep(0.02)

    writer = threading.Thread(target=write)
    writer.start()
    assert read_image(pipe) == HDF5
    writer.join()


class Standard:
    """Standard input or output as bytes."""

    def __init__(self, content: bytes = b"", tty: bool = False) -> None:
        self.buffer = io.BytesIO(content)
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty


def test_dash_is_standard_input_and_output(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Standard()
    monkeypatch.setattr(sys, "stdout", out)
    save_trajectories("-", sample_trajectories())
    monkeypatch.setattr(sys, "stdin", Standard(out.buffer.getvalue()))
    assert same(load_trajectories("-"), sample_trajectories())
    monkeypatch.setattr(sys, "stdin", Standard(HDF5[:-5]))
    with pytest.raises(DataError, match="standard input: its structure is damaged or cut off"):
        load_trajectories("-")


def test_terminals_are_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Standard(tty=True))
    monkeypatch.setattr(sys, "stdin", Standard(tty=True))
    with pytest.raises(UsageError, match="standard output is a terminal"):
        check_output("-")
    with pytest.raises(UsageError, match="standard input is a terminal"):
        read_image("-")


def test_an_output_replaces_the_old_one_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    write_atomic(path, b"old")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    path.chmod(0o640)
    write_atomic(path, [b"n", b"ew"], force=True)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["out.h5"]


def test_outputs_that_cannot_be_written_are_refused_before_any_work(tmp_path: Path) -> None:
    old = tmp_path / "old.h5"
    old.write_bytes(b"old")
    cases: list[tuple[Path | str, bool, str]] = [
        (old, False, "exists already."),
        (tmp_path, True, "is a directory, expected the name of a file."),
        (f"{tmp_path}/new/", True, "is a directory"),
        (tmp_path / "no" / "a.h5", True, "there is no folder"),
        (old / "a.h5", True, "there is no folder"),
        (tmp_path / ("é" * 128), True, "the name is longer than 255 bytes."),
        ("/dev/null", True, "is no regular file, so it cannot be replaced."),
        ("a\0b", True, "cannot be written"),
    ]
    for path, force, message in cases:
        with pytest.raises(OutputError) as caught:
            check_output(path, force)
        assert message in caught.value.message, path
        with pytest.raises(OutputError):
            write_atomic(path, b"x", force)
    assert old.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["old.h5"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="is not writable"):
        check_output(tmp_path / "a.h5")
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("name", ["a b\nc", "Prüfstand ✓", "x" * 255, os.fsdecode(b"\xff\xfe.h5"), "-n", "'"])
def test_names_of_every_kind_can_be_written_and_read(tmp_path: Path, name: str) -> None:
    data = sample_trajectories()
    save_trajectories(tmp_path / name, data)
    assert same(load_trajectories(tmp_path / name), data)
    with pytest.raises(OutputError) as caught:
        save_trajectories(tmp_path / name, data)
    str(caught.value).encode()
    assert "\n" not in str(caught.value)


def test_links_are_followed_and_stay(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_atomic(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"
    with pytest.raises(OutputError, match="exists already"):
        write_atomic(tmp_path / "link", b"newer")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OutputError):
        write_atomic(tmp_path / "loop", b"x", force=True)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("call", ["open", "posix_fallocate", "write", "fsync", "close", "link", "replace"])
def test_a_fault_at_any_step_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, force: bool
) -> None:
    path = tmp_path / "out.h5"
    if force:
        path.write_bytes(b"old")
    original = getattr(os, call)

    def fail(*args: Any, **options: Any) -> Any:
        if call == "close":
            original(*args, **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    if (call, force) in (("link", True), ("replace", False)):  # not called then
        write_atomic(path, b"new", force)
        return
    with pytest.raises(OutputError) as caught:
        write_atomic(path, b"new", force)
    assert caught.value.message == f"{path}: cannot be written: No space left on device."
    assert caught.value.hint == "Free some room, or choose another disk."
    monkeypatch.undo()
    assert os.listdir(tmp_path) == (["out.h5"] if force else [])
    assert not force or path.read_bytes() == b"old"


def test_file_systems_without_reserving_or_hard_links_still_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    monkeypatch.setattr(os, "link", refuse)
    write_atomic(tmp_path / "out.h5", b"new")
    assert (tmp_path / "out.h5").read_bytes() == b"new"


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, fsync = tmp_path / "out.h5", os.fsync

    def appear(descriptor: int) -> None:
        fsync(descriptor)
        path.write_bytes(b"theirs")

    monkeypatch.setattr(os, "fsync", appear)
    with pytest.raises(OutputError, match="exists already"):
        write_atomic(path, b"ours")
    assert path.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["out.h5"]


def test_an_interrupt_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "out.h5", b"new")
    assert os.listdir(tmp_path) == []


def test_a_limit_on_file_sizes_is_an_error_and_no_signal(tmp_path: Path) -> None:
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "from snet_cli.data.outputs import write_atomic; from snet_cli.errors import SnetError\n"
        "try: write_atomic(sys.argv[1], b'x' * 5000)\n"
        "except SnetError as error: print(error.exit_code, error.hint)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "o")], capture_output=True, text=True)
    assert done.stdout == "5 The limit on file sizes (ulimit -f) is too small for it.\n", done.stderr
    assert os.listdir(tmp_path) == []


def test_paths_in_messages_can_always_be_printed() -> None:
    assert display("-") == "standard input"
    assert display("a\nb\x1b[31m") == "a\\nb\\x1b[31m"
    display(os.fsdecode(b"\xff")).encode()
    assert issubclass(OutputError, SnetError)
