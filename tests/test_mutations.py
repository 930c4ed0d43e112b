"""Damage at random: a mutated file is refused or gives the same values, never others, never a crash or a hang.

Each mutation is read in a forked child that has everything imported, with a time limit; what comes back is compared
with what was written. HDF5 and gzip have checksums over every byte that is read, so the only harmless mutations are
those of bytes that mean nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snet_cli.data.checkpoint_file import Checkpoint, encode_checkpoint, load_checkpoint
from snet_cli.data.storage import MAX_BYTES
from snet_cli.data.trajectory_file import decode_trajectories, encode_trajectories, save_trajectories
from snet_cli.errors import CheckpointError, DataError
from snet_cli.training.options import FitOptions
from snet_cli.workflows.fit import fit
from snet_cli.workflows.run_state import load_state
from tests.sample_files import same, sample_checkpoint, sample_trajectories
from tests.training_cases import spirals

LIMIT = 10.0
"""Seconds for one reading; it takes milliseconds."""

TRAJECTORIES, CHECKPOINT = sample_trajectories(), sample_checkpoint()

STATE: list[Any] = []
"""Bytes and content of a run's state, once a test needs them."""


def mutate(image: bytes, rng: np.random.Generator) -> bytes:
    """One of: a flipped bit, a block of random bytes, a block of zeros, a cut, a piece copied to another place."""
    at = int(rng.integers(len(image)))
    size = min(int(rng.integers(1, 65)), len(image) - at)
    kind = rng.choice(["flip", "block", "zero", "truncate", "splice"])
    if kind == "flip":
        return image[:at] + bytes([image[at] ^ (1 << int(rng.integers(8)))]) + image[at + 1 :]
    if kind == "block":
        return image[:at] + rng.bytes(size) + image[at + size :]
    if kind == "zero":
        return image[:at] + bytes(size) + image[at + size :]
    if kind == "truncate":
        return image[:at]
    source = int(rng.integers(len(image) - size + 1))
    return image[:at] + image[source : source + size] + image[at + size :]


def read_trajectories(image: bytes) -> str:
    """What reading the bytes comes to."""
    try:
        loaded = decode_trajectories(image, "file")
    except DataError:
        return "refused"
    return "harmless" if same(loaded.trajectories, TRAJECTORIES) else "SILENT"


def read_checkpoint(image: bytes) -> str:
    """What reading the bytes comes to."""
    try:
        loaded = load_checkpoint(image)
    except CheckpointError:
        return "refused"
    return "harmless" if same(loaded, CHECKPOINT) else "SILENT"


def read_state(image: bytes) -> str:
    """What going on from the state of a run comes to."""
    path = Path(f"{os.getpid()}.resume")
    path.write_bytes(image)
    try:
        load_state(str(path), MAX_BYTES)
    except CheckpointError:
        return "refused"
    return "harmless" if same(load_checkpoint(image), STATE[1]) else "SILENT"


def real_state() -> tuple[bytes, Checkpoint]:
    """The state of a short run, as bytes and as what they hold."""
    with tempfile.TemporaryDirectory() as folder:
        save_trajectories(f"{folder}/a.h5", spirals(3, 20))
        options = {"method": "delta", "model": {"name": "mlp", "hidden": [4]}, "order": 5, "elements": 1}
        fit(f"{folder}/a.h5", f"{folder}/m.h5", FitOptions.model_validate({**options, "iterations": 3}))
        image = Path(f"{folder}/m.h5.resume").read_bytes()
    return image, load_checkpoint(image)


def serve(judge: Callable[[bytes], str], connection: Connection) -> None:
    """The child: reads images until it is told to stop, and answers with what each came to."""
    while image := connection.recv_bytes():
        try:
            answer = judge(image)
        except BaseException as error:
            answer = f"TRACEBACK {type(error).__name__}: {error}"
        connection.send(answer)
    os._exit(0)


def judge_all(judge: Callable[[bytes], str], images: list[bytes]) -> Counter[str]:
    """Count of what each image came to; a child that hangs or dies is replaced and counted."""
    context = multiprocessing.get_context("fork")
    counts: Counter[str] = Counter()
    child: multiprocessing.process.BaseProcess | None = None
    for image in images:
        if child is None:
            ours, theirs = context.Pipe()
            child = context.Process(target=serve, args=(judge, theirs), daemon=True)
            child.start()
            theirs.close()
        ours.send_bytes(image)
        try:
            answer = ours.recv() if ours.poll(LIMIT) else "HANG"
        except EOFError:
            answer = "CRASH"
        counts[answer] += 1
        if answer in ("HANG", "CRASH"):
            child.kill()
            child.join()
            child = None
    if child is not None:
        ours.send_bytes(b"")
        child.join()
    return counts


pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # torch's threads sleep


JUDGES: dict[str, tuple[Callable[[bytes], str], Callable[[], bytes]]] = {
    "trajectories": (read_trajectories, lambda: encode_trajectories(TRAJECTORIES)),
    "checkpoint": (read_checkpoint, lambda: encode_checkpoint(CHECKPOINT)),
    "state of a run": (read_state, lambda: STATE[0]),
}


@pytest.mark.parametrize("kind", JUDGES)
@pytest.mark.parametrize("count", [100, pytest.param(3_400, marks=pytest.mark.stress)])
def test_damage_is_refused_or_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, count: int
) -> None:
    monkeypatch.chdir(tmp_path)
    STATE[:] = STATE or real_state()
    judge, image = JUDGES[kind][0], JUDGES[kind][1]()
    rng = np.random.default_rng(20200430)
    images = [mutate(image, rng) for _ in range(count)]
    start = time.perf_counter()
    counts = judge_all(judge, [image, *(other or b"\0" for other in images)])
    with capsys.disabled():
        print(f"\n{kind}: {dict(counts)} of {count} mutations in {time.perf_counter() - start:.1f} s")
    assert set(counts) <= {"refused", "harmless"}, counts
    assert counts["refused"] > count / 2


def test_the_judges_can_tell_harm() -> None:
    """The test tests: another file's content, an exception and a dead child are seen."""
    assert read_trajectories(encode_trajectories(sample_trajectories(seed=1))) == "SILENT"
    assert read_checkpoint(encode_checkpoint(sample_checkpoint(seed=1))) == "SILENT"

    def wild(image: bytes) -> str:
        if image == b"die":
            os._exit(3)
        raise ZeroDivisionError

    assert judge_all(wild, [b"x", b"die"]) == {"TRACEBACK ZeroDivisionError: ": 1, "CRASH": 1}
