"""An import that is larger than the memory: in slices it is what it is in one piece, bytes, notes and errors alike.

Small files are cut into small blocks here: a few rows are read, sorted, assembled and searched at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from snet_cli.data import csv_rows, import_slices, merge_slices, spooled, table_spool
from snet_cli.data.content import CHUNK_BYTES, Array, Content, encode
from snet_cli.data.derivatives import Turns
from snet_cli.data.scratch import ScratchColumns, ScratchRows, gathered, median
from snet_cli.data.slice_writer import save_content
from snet_cli.data.trajectories import Trajectories
from snet_cli.data.trajectory_file import save_trajectories
from snet_cli.simulation.simulate import simulate
from snet_cli.workflows import import_
from tests.children import leftovers, run_child
from tests.command import Snet


@pytest.fixture
def in_slices(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Switches between one piece and small slices."""
    for module, name, value in (
        (csv_rows, "BLOCK_ROWS", 7),
        (table_spool, "SORTED_ROWS", 11),
        (table_spool, "BLOCK", 50),
        (import_slices, "SLICE_NUMBERS", 60),
        (spooled, "BLOCK", 13),
        (merge_slices, "SLICE_SAMPLES", 40),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(import_, "IN_SLICES", 0.0)
    monkeypatch.setattr(import_, "resident", lambda: 0.0)

    def switch(on: bool) -> None:
        monkeypatch.setattr(import_, "_needs_slices", (lambda *_: True) if on else (lambda *_: False))

    return switch


def table(rows: int, seed: int = 0, *, gaps: float = 0.0, name: str = "") -> list[str]:
    """Lines of a recording: time, two states of which one is an angle in degrees, two inputs; values missing."""
    rng = np.random.default_rng(seed)
    time = np.cumsum(rng.uniform(0.05, 0.15, rows))
    columns = [np.sin(time), np.mod(60 * time + 180, 360) - 180, np.round(rng.normal(size=rows), 2), np.cos(time)]
    cells = [[f"{value:.9g}" for value in column] for column in columns]
    for column in cells:
        for row in np.flatnonzero(rng.random(rows) < gaps):
            column[row] = ""
    front = [name] if name else []
    return [",".join([*front, f"{t:.9g}", *row]) for t, row in zip(time, zip(*cells, strict=True), strict=True)]


HEADER = "t,x [m],a [deg],u,w"
CHANNELS = ("--states", "x,a", "--inputs", "u,w")


def both(snet: Snet, in_slices: Callable[[bool], None], *words: object) -> tuple[str, dict[str, object]]:
    """Import in one piece and in slices; what it says, after finding that it is the same."""
    said = []
    for on, name in ((False, "whole.h5"), (True, "sliced.h5")):
        in_slices(on)
        ran = snet("import", *words, "-o", name, "--json", "--force")
        said.append((ran.code, ran.err.replace("sliced.h5", "whole.h5"), {**ran.json, "output": None}))
    assert said[0] == said[1]
    if said[0][0] == 0:
        assert Path("whole.h5").read_bytes() == Path("sliced.h5").read_bytes()
    assert leftovers() == []
    return said[0][1], said[0][2]


MANY = ("r0.csv", "r1.csv", "r2.csv", "r3.csv", "r4.csv")


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--hold", "u=linear,w=zoh"),
        ("--hold", "cubic", "--window", 2, "--stride", 0.7),
        ("--angle", "a", "--derive", "r=d(a),s=d(x)", "--units", "s=m/s"),
        ("--decimate", 3, "--window", 2, "--init-window", 2, "--split", "valid=r1,test=4-5"),
        ("--angle", "a", "--derive", "r=d(a)", "--decimate", 2, "--window", 1.5, "--split", "valid=r1"),
    ],
)
def test_many_files_are_imported_in_slices_as_in_one_piece(
    snet: Snet, in_slices: Callable[[bool], None], words: tuple[object, ...]
) -> None:
    """One of them is longer than a slice, one is not in order of time, all have gaps."""
    for number, rows in enumerate((9, 60, 12, 30, 31)):
        lines = table(rows, number, gaps=0.2)
        Path(MANY[number]).write_text("\n".join([HEADER, *(lines[::-1] if number == 2 else lines)]) + "\n")
    err, found = both(snet, in_slices, *MANY, *CHANNELS, *words)
    assert "sorted the rows of 1 recording by time" in err
    assert found["trajectories"] == 5 or "--window" in words


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("words", [(), ("--window", 1.5, "--angle", "a=deg")])
def test_one_file_of_many_recordings(
    snet: Snet, in_slices: Callable[[bool], None], mixed: bool, words: tuple[object, ...]
) -> None:
    """Recordings one after the other, and row by row among each other."""
    lines = [line for k, rows in enumerate((25, 3, 40, 18)) for line in table(rows, k, gaps=0.1, name=f"car {k}")]
    if mixed:
        lines = [lines[k] for k in np.random.default_rng(0).permutation(len(lines))]
    Path("all.csv").write_text("\n".join([f"id,{HEADER}", *lines]) + "\n")
    Path("more.csv").write_text("\n".join([f"id,{HEADER}", *table(30, 9, name="car 1")]))
    err, found = both(snet, in_slices, "all.csv", "more.csv", "--by", "id", *CHANNELS, *words)
    assert ("sorted the rows" in err) == mixed
    if not words:
        assert found["trajectories"] == 5


@pytest.mark.parametrize(
    ("encoding", "change"),
    [
        ("utf-16", lambda text: text),
        ("latin-1", lambda text: text.replace("car", "càr")),
        ("utf-8-sig", lambda text: text.replace("\n", "\r\n")),
        ("utf-8", lambda text: text.replace(",", ";").replace(".", ",")),
        ("utf-8", lambda text: text.replace("car 3", '"car 3"') + "\n# the end\n\n"),
        ("utf-8", lambda text: text.replace(",", "\t") + "\n\n"),
    ],
)
def test_files_of_every_kind_of_text(
    snet: Snet, in_slices: Callable[[bool], None], encoding: str, change: Callable[[str], str]
) -> None:
    lines = [line for k in range(5) for line in table(11 + k, k, gaps=0.1, name=f"car {k}")]
    Path("all.csv").write_bytes(change("\n".join([f"id,{HEADER}", *lines])).encode(encoding))
    both(snet, in_slices, "all.csv", "--by", "id", *CHANNELS)


def test_arrays_are_read_whole_and_go_on_in_slices(snet: Snet, in_slices: Callable[[bool], None]) -> None:
    time = np.arange(40) * 0.1
    np.savez("a.npz", t=time, x=np.sin(time), a=time, u=time[:-1] % 3, w=time)
    groups = {f"{k:03d}_{name}": np.cos(time[: 20 + k] * k + 1) for k in range(3) for name in "xauw"}
    np.savez("b.npz", **groups, **{f"{k:03d}_t": time[: 20 + k] for k in range(3)})
    Path("c.csv").write_text("\n".join(["t,x,a,u,w", *table(30)]))
    _, found = both(snet, in_slices, "a.npz", "b.npz", "c.csv", *CHANNELS)
    assert found["trajectories"] == 5


@cache
def simulated(trajectories: int) -> Trajectories:
    """Some pendulums, with noise and lost values."""
    return simulate(
        "pendulum", trajectories=trajectories, samples=12, horizon=2.0, noise=0.01, missing=0.1, seed=trajectories
    ).trajectories


def shards(**differences: object) -> tuple[str, ...]:
    """Three files of simulations, of which the second differs."""
    files = ("part0.h5", "part1.h5", "part2.h5")
    for number, (file, count) in enumerate(zip(files, (5, 2, 9), strict=True)):
        data = simulated(count)
        save_trajectories(file, replace(data, **differences) if number == 1 else data, force=True)
    return files


@pytest.mark.parametrize(
    "words",
    [(), ("--window", 1.5, "--stride", 0.4), ("--decimate", 2, "--split", "valid=1,test=2", "--init-window", 2)],
)
def test_trajectory_files_are_merged_in_slices(
    snet: Snet, in_slices: Callable[[bool], None], words: tuple[object, ...]
) -> None:
    """Truth, starts, noise, constants and Fourier series are kept as in one piece, or not kept, with the same notes."""
    names = shards()
    _, found = both(snet, in_slices, *names, *words)
    assert found["trajectories"] == 16 or "--window" in words
    for number in range(2):  # inputs on a clock of their own
        Path(f"r{number}.csv").write_text("\n".join([HEADER, *table(30, number, gaps=0.1)]))
        assert snet("import", f"r{number}.csv", *CHANNELS, "-o", f"part{number}.h5", "--force").code == 0
    both(snet, in_slices, *names[:2], *words[:4])


def test_files_that_differ_are_merged_or_refused_alike(snet: Snet, in_slices: Callable[[bool], None]) -> None:
    one = simulated(2)
    heavy = {**(one.system or {}), "m": 2.0}
    notes = both(snet, in_slices, *shards(truth=None, x0=None, noise_std={}, system=heavy))[0]
    assert "only some of the files hold the noise-free truth" in notes
    assert "'m' of the system differs between the files and is kept for each trajectory" in notes
    both(snet, in_slices, *shards(split=np.array([1, 2]), init_window=np.array([0, 3])))
    both(snet, in_slices, *shards(system=None))
    empty = np.where(np.arange(2) == 1, np.nan, one.outputs)
    assert "has no value at all" in both(snet, in_slices, *shards(outputs=empty))[0]
    assert "the units are" in both(snet, in_slices, *shards(units={"theta": "deg"}))[0]
    assert "already say what their channels are" in both(snet, in_slices, *shards(), "--states", "x")[0]


BAD = {
    "a cell that is no number": ["1,2,3,x,5"],
    "a row that is too short": ["1,2,3"],
    "a time that stands twice": ["3,1,1,1,1", "3,2,2,2,2"],
    "a time that is missing": [",1,1,1,1"],
    "an infinite input and later an infinite state": ["3,1,1,inf,1", *table(30, 3)[25:], "30,-inf,1,1,1"],
    "a time that stands twice before one that is missing": ["3,1,1,1,1", "3,2,2,2,2", *table(30, 3)[25:], ",1,1,1,1"],
}


@pytest.mark.parametrize(
    ("rows", "lines"), [(60, lines) for lines in BAD.values()] + [(12, BAD["a time that stands twice"])]
)
def test_errors_name_the_same_file_and_line(
    snet: Snet, in_slices: Callable[[bool], None], rows: int, lines: list[str]
) -> None:
    good = [f"{float(line.split(',')[0]) + 10:.9g},{line.partition(',')[2]}" for line in table(rows)]
    Path("r0.csv").write_text("\n".join([HEADER, *table(30)]))
    Path("r1.csv").write_text("\n".join([HEADER, *table(2), *lines, *good]))
    err, _ = both(snet, in_slices, "r0.csv", "r1.csv", *CHANNELS)
    assert "r1.csv, line " in err


WRONG = (
    ("--window", 100),
    ("--window", 0.06, "--stride", 50),
    ("--decimate", 40),
    ("--init-window", 30),
    ("--split", "valid=r7"),
    ("--derive", "v=d(z)"),
    ("--hold", "z=linear"),
    ("--time", "z"),
)


def test_wrong_options_are_refused_alike(snet: Snet, in_slices: Callable[[bool], None]) -> None:
    for number in range(2):
        Path(f"r{number}.csv").write_text("\n".join([HEADER, *table(30, number)]))
    for words in WRONG:
        assert both(snet, in_slices, "r0.csv", "r1.csv", *CHANNELS, *words)[1]["error"]


def test_channels_that_differ_or_hold_nothing_are_told_alike(snet: Snet, in_slices: Callable[[bool], None]) -> None:
    rows = [line.replace(line.split(",")[2], "", 1) for line in table(30)]
    Path("empty.csv").write_text("\n".join([HEADER, *(",".join([*r.split(",")[:2], "", "1", "2"]) for r in rows)]))
    Path("other.csv").write_text("\n".join(["t,x [mm],a [deg],u,w", *table(20)]))
    Path("good.csv").write_text("\n".join([HEADER, *table(20)]))
    Path("bare.csv").write_text(HEADER + "\n")
    err, _ = both(snet, in_slices, "empty.csv", *CHANNELS)
    assert "the state 'a' holds no value at all" in err
    err, _ = both(snet, in_slices, "good.csv", "empty.csv", *CHANNELS)
    assert "'a' was not measured in 'empty'" in err
    for names in (("good.csv", "other.csv"), ("good.csv", "bare.csv"), ("good.csv", "none.csv")):
        both(snet, in_slices, *names, *CHANNELS)


def test_what_does_not_fit_is_refused_with_the_figure(snet: Snet, in_slices: Callable[[bool], None]) -> None:
    in_slices(True)
    Path("r.csv").write_text("\n".join([HEADER, *table(60)[::-1]]))
    np.savez("r.npz", t=np.arange(5), x=np.arange(5), a=np.arange(5), u=np.arange(5), w=np.arange(5))
    shards()
    for name, what in (
        ("r.csv", "sorting the 60 rows of 'r' in r.csv by time"),
        ("r.npz", "reading r.npz, whose"),
        ("part0.h5", "reading a trajectory of 12 samples in part0.h5"),
    ):
        channels = () if name.endswith("h5") else CHANNELS
        ran = snet("import", name, "-o", "o.h5", *channels, "--max-memory", "1kB")
        assert ran.code == 2
        assert what in ran.err
        assert "of --max-memory" in ran.err
        assert "o.h5" not in os.listdir()


def test_the_memory_of_an_import_does_not_grow_with_its_files(snet: Snet, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a child, one recording of 26 MB: in one piece it takes about 130 MB beside the program."""
    monkeypatch.setattr(import_, "_needs_slices", lambda *_: True)
    tail = ",0.12345678901234567,-1.2345678901234567,0.5\n"
    Path("long.csv").write_text("t,x,y,u\n" + "".join(f"{k}{tail}" for k in range(500_000)))
    ended = run_child(("import", "long.csv", "-o", "o.h5", "--states", "x,y", "--inputs", "u"))
    assert ended.code == 0, ended.said
    assert ended.grew_mb < 80


# the parts


def test_scratch_gives_back_what_it_got() -> None:
    values = np.random.default_rng(0).normal(size=(1000, 3))
    columns, rows = ScratchColumns(3), ScratchRows(3)
    for part in np.split(values, [10, 10, 300, 999]):
        columns.append(part)
        rows.append(part)
    for begin, end in ((0, 1000), (5, 15), (299, 301), (999, 1000), (7, 7), (1000, 1000)):
        np.testing.assert_array_equal(rows.between(begin, end), values[begin:end])
        for k in range(3):
            np.testing.assert_array_equal(columns.column(k)(begin, end), values[begin:end, k])
    for width, stride in ((50, 20), (50, 50), (5, 100)):
        first = np.arange(0, 900, stride)
        read = gathered(columns.column(1), first, first + width)
        whole = np.concatenate([values[a : a + width, 1] for a in first])
        for begin, end in ((0, whole.size), (3, 40), (44, 45), (20, 43), (5, 5), (whole.size - 1, whole.size)):
            np.testing.assert_array_equal(read(begin, end), whole[begin:end])


def test_medians_and_turns_in_parts_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 10, 11, 1000, 1001):
        steps = (np.diff(np.arange(size + 1) * 0.01), rng.integers(1, 4, size) * 0.1, np.exp(9 * rng.normal(size=size)))
        for values in steps:
            assert median(lambda values=values: np.array_split(values, 3)) == np.median(values)
        for angle in (rng.uniform(-4, 4, size), rng.integers(-3, 4, size) * np.pi / 2):
            turns = Turns()
            parts = [turns.without(part) for part in np.array_split(angle, 7)]
            np.testing.assert_array_equal(np.concatenate(parts), np.unwrap(angle))


def test_a_file_written_in_place_has_the_bytes_of_its_image(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=3 * CHUNK_BYTES // 8 + 5)
    texts = np.array([f"{k}".encode() for k in range(7)], "S64")
    given = {"a": Array.of(texts, ("traj",)), "b": Array.of(values, ("obs",), {"units": "m"}), "c": Array.of(np.pi)}
    given |= {"d": Array.of(np.zeros((0, 2)))}
    long = Content({"title": "x" * 70_000, "one": 1}, given)
    sizes = {"traj": 7, "obs": values.size}
    elsewhere = {**given, "b": given["b"].elsewhere(values.size, lambda begin, end: values[begin:end])}
    save_content(tmp_path / "a.h5", Content(long.attributes, elsewhere), sizes)
    found, image = (tmp_path / "a.h5").read_bytes(), encode(long, sizes)
    assert len(found) == len(image)
    assert found[48:] == image[48:]
