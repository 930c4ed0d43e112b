"""The guard: files made to point elsewhere, loop, exhaust the memory or crash a reader are refused, and quickly."""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t

from snet_cli.data.storage import MAX_BYTES
from snet_cli.data.trajectory_file import load_with_notes
from snet_cli.errors import DataError
from tests.sample_files import edited

Change = Callable[[h5py.File], Any]

FIXED = "attrs.create('{}', np.bytes_(text.encode()), dtype=h5py.string_dtype('utf-8', len(text.encode())))"


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=(54,), dtype="f8")
    layout[:] = h5py.VirtualSource("/etc/passwd", "y", shape=(54,))
    file.create_virtual_dataset("v", layout)


def low_level(file: h5py.File, shape: tuple[int, ...], chunk: tuple[int, ...]) -> None:
    """A data set whose chunks are never written."""
    plan = h5p.create(h5p.DATASET_CREATE)
    plan.set_chunk(chunk)
    plan.set_alloc_time(h5d.ALLOC_TIME_LATE)
    h5d.create(file.id, b"big", h5t.NATIVE_DOUBLE, h5s.create_simple(shape), plan)


def bomb(file: h5py.File) -> None:
    """Far more than the limit in a few kilobytes: the same tiny chunk many times over."""
    dataset = file.create_dataset("bomb", (2**34,), "i1", chunks=(2**27,), compression=9)
    dataset[: 2**10] = 0
    _, raw = dataset.id.read_direct_chunk((0,))
    for start in range(0, 2**34, 2**27):
        dataset.id.write_direct_chunk((start,), raw)


def double_deflate(file: h5py.File) -> None:
    plan = h5p.create(h5p.DATASET_CREATE)
    plan.set_chunk((54,))
    plan.set_deflate(9)
    plan.set_deflate(9)
    h5d.create(file.id, b"twice", h5t.NATIVE_DOUBLE, h5s.create_simple((54,)), plan).write(
        h5s.create_simple((54,)), h5s.create_simple((54,)), np.zeros(54)
    )


def nested(file: h5py.File) -> None:
    file.create_group("a/b/c/d/e/f")


def loop(file: h5py.File) -> None:
    group = file.create_group("a")
    group["again"] = group


def committed(file: h5py.File) -> None:
    file["type"] = np.dtype("f8")


def array_type(file: h5py.File) -> None:
    h5d.create(file.id, b"a", h5t.array_create(h5t.NATIVE_DOUBLE, (2,)), h5s.create_simple((3,)))


def many(file: h5py.File) -> None:
    for number in range(10_001):
        file.create_group(f"g{number}")


def attributes(file: h5py.File) -> None:
    for number in range(1_001):
        file.attrs[f"a{number}"] = 1


def own_scale_attribute(file: h5py.File) -> None:
    file["y_x"].attrs.create("REFERENCE_LIST", "text", dtype=h5py.string_dtype())


COMPOUND = np.dtype([("a", "f8"), ("b", "i4")])

HOSTILE: list[tuple[Change, str]] = [
    (
        lambda f: f.create_dataset("e", (54,), "f8", external="/etc/passwd"),
        "the values of '/e' lie in other files (external storage)",
    ),
    (lambda f: f.__setitem__("l", h5py.ExternalLink("/etc/passwd", "/y")), "'/l' is a link to another file"),
    (lambda f: f.__setitem__("l", h5py.SoftLink("/time")), "'/l' is a soft link"),
    (lambda f: f.create_group("a").__setitem__("b", h5py.SoftLink("/")), "'/a/b' is a soft link"),
    (
        lambda f: f.create_group("a").__setitem__("b", h5py.ExternalLink("x.h5", "/")),
        "'/a/b' is a link to another file",
    ),
    (virtual, "'/v' is a virtual data set"),
    (lambda f: f.__setitem__("copy", f["time"]), "is a second name of another object (a hard link)."),
    (loop, "'/a/again' is a second name of another object"),
    (lambda f: f.__setitem__("root", f["/"]), "'/root' is a second name of another object"),
    (many, "holds more than 10000 objects."),
    (nested, "groups are nested deeper than 4, at '/a/b/c/d'."),
    (attributes, "'/' has more than 1000 attributes."),
    (lambda f: low_level(f, (2**40,), (2**20,)), "chunks; the rest was never written."),
    (lambda f: f.create_dataset("big", (2**40,), "f8"), "'/big' brings the declared size to"),
    (lambda f: f.create_dataset("gap", (100,), "f8"), "'/gap' declares 800 bytes but stores 0"),
    (lambda f: f.create_dataset("gap", (100,), "f8", chunks=(10,))[:10].sum(), "'/gap' has 0 of 10 chunks"),
    (bomb, "brings the declared size to 17179"),
    (double_deflate, "'/twice' uses one filter twice."),
    (
        lambda f: f.create_dataset("z", data=np.ones(54), compression="lzf"),
        "'/z' uses the filter 32000, expected only deflate",
    ),
    (lambda f: f.create_dataset("z", data=np.ones(54), scaleoffset=2), "'/z' uses the filter 6"),
    (lambda f: f.create_dataset("c", data=np.zeros(3, COMPOUND)), "'/c' holds a compound type, expected numbers."),
    (lambda f: f.create_dataset("r", data=f["time"].ref, dtype=h5py.ref_dtype), "'/r' holds a reference"),
    (lambda f: f.create_dataset("s", data=["a"], dtype=h5py.string_dtype()), "'/s' is a variable-length string"),
    (lambda f: f.create_dataset("s", (2,), h5py.vlen_dtype("f8")), "'/s' holds a variable-length type"),
    (lambda f: f.create_dataset("o", data=np.zeros(3, "V7")), "'/o' holds an opaque type"),
    (array_type, "'/a' holds an array type"),
    (lambda f: f.create_dataset("e", data=1, dtype=h5py.enum_dtype({"A": 0, "B": 7})), "'/e' holds an enumeration"),
    (lambda f: f.create_dataset("q", data=np.ones(3, np.longdouble)), "'/q' has an unusual number format."),
    (lambda f: f.create_dataset("n", data=h5py.Empty("f8")), "'/n' has no values at all (a null data space)."),
    (committed, "'/type' is a named type, expected an array or a group."),
    (
        lambda f: f.attrs.__setitem__("author", "me"),
        "the attribute 'author' of '/' is a variable-length string, which is not read.",
    ),
    (lambda f: f["y_x"].attrs.__setitem__("units", "m"), "the attribute 'units' of '/y_x' is a variable-length string"),
    (lambda f: f["y_x"].attrs.__setitem__("ref", f["time"].ref), "the attribute 'ref' of '/y_x' holds a reference"),
    (lambda f: f.attrs.__setitem__("c", np.zeros(1, COMPOUND)), "the attribute 'c' of '/' holds a compound type"),
    (own_scale_attribute, "the attribute 'REFERENCE_LIST' of '/y_x' is not what HDF5 writes"),
    (lambda f: f.attrs.__setitem__("big", np.zeros(2**18)), "the attribute 'big' of '/' is larger than 1048576 bytes."),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE, ids=[message[:45] for _, message in HOSTILE])
def test_hostile_files_are_refused_at_once(tmp_path: Path, change: Change, message: str) -> None:
    path = edited(tmp_path / "data.h5", change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with pytest.raises(DataError) as caught:
        load_with_notes(path)
    assert message in caught.value.message
    assert caught.value.message.startswith(f"{path}: ")
    assert caught.value.hint
    assert time.process_time() - start < 1.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_variable_length_text_is_refused_with_the_line_that_mends_it(tmp_path: Path) -> None:
    path = edited(tmp_path / "data.h5", lambda f: f.attrs.__setitem__("title", "new"))
    with pytest.raises(DataError) as caught:
        load_with_notes(path)
    assert caught.value.hint == "Write " + FIXED.format("title")
    line = caught.value.hint.removeprefix("Write ")
    with h5py.File(path, "r+") as file:
        exec("file." + line, {"file": file, "np": np, "h5py": h5py, "text": "neu"})
    assert load_with_notes(path).trajectories.title == "neu"


def test_user_defined_links_are_refused(tmp_path: Path) -> None:
    """HDF5 can only write them from C: an external link whose type is changed in the bytes, checksum and all."""
    path = edited(
        tmp_path / "data.h5", lambda f: f.create_group("g").__setitem__("xlink", h5py.ExternalLink("a", "/b"))
    )
    image = bytearray(path.read_bytes())
    name = image.index(b"\x05xlink")
    assert image[name - 1] == 64  # the link type, before the length of the name
    image[name - 1] = 65
    header = image.rindex(b"OHDR", 0, name)
    size = image[header + 6 + 0]  # a version-2 object header without times: flags, then the size of its messages
    end = header + 7 + size
    image[end : end + 4] = struct.pack("<I", lookup3(bytes(image[header:end])))
    path.write_bytes(image)
    with pytest.raises(DataError, match="'/g/xlink' is a user-defined link"):
        load_with_notes(path)


def lookup3(data: bytes) -> Any:
    """Checksum of HDF5's metadata (Bob Jenkins' lookup3, hashlittle)."""
    mask = 0xFFFFFFFF

    def rot(x: int, k: int) -> int:
        return ((x << k) | (x >> (32 - k))) & mask

    a = b = c = (0xDEADBEEF + len(data)) & mask
    while len(data) > 12:
        a, b, c = ((v + w) & mask for v, w in zip((a, b, c), struct.unpack("<III", data[:12]), strict=True))
        for k in ((4, 6, 8), (16, 19, 4)):
            a = ((a - c) & mask) ^ rot(c, k[0])
            c = (c + b) & mask
            b = ((b - a) & mask) ^ rot(a, k[1])
            a = (a + c) & mask
            c = ((c - b) & mask) ^ rot(b, k[2])
            b = (b + a) & mask
        data = data[12:]
    if not data:
        return c
    a, b, c = ((v + w) & mask for v, w in zip((a, b, c), struct.unpack("<III", data.ljust(12, b"\0")), strict=True))
    for x in ((14, 11, 25), (16, 4, 14), (24,)):
        c = ((c ^ b) - rot(b, x[0])) & mask
        if len(x) == 1:
            break
        a = ((a ^ c) - rot(c, x[1])) & mask
        b = ((b ^ a) - rot(a, x[2])) & mask
    return c


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = edited(
        tmp_path / "data.h5", lambda f: h5d.create(f.id, b"\xff\xfe", h5t.NATIVE_INT32, h5s.create(h5s.SCALAR))
    )
    with pytest.raises(DataError, match="a name in the file is not UTF-8"):
        load_with_notes(path)


def test_limits_name_the_flag_that_raises_them(tmp_path: Path) -> None:
    path = edited(tmp_path / "data.h5", lambda f: f.create_dataset("zeros", data=np.zeros(2**18), compression=4))
    size = path.stat().st_size
    with pytest.raises(DataError) as caught:
        load_with_notes(path, max_bytes=size + 1)
    assert "'/zeros' brings the declared size to" in caught.value.message
    assert "--max-bytes" in caught.value.hint
    assert load_with_notes(path, max_bytes=MAX_BYTES).notes


def test_nothing_is_read_from_other_files(tmp_path: Path) -> None:
    """The system calls tell: only the named file is opened."""
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["y"] = np.ones(54)

    def change(file: h5py.File) -> None:
        layout = h5py.VirtualLayout(shape=(54,), dtype="f8", maxshape=(None,))
        source = h5py.VirtualSource(str(other), "y", shape=(54,), maxshape=(None,))
        layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
        file.create_virtual_dataset("v", layout)

    path = edited(tmp_path / "data.h5", change)
    code = (
        "import sys; opened = []\n"
        "from snet_cli.data.trajectory_file import load_with_notes\n"
        "from snet_cli.errors import DataError\n"
        "import os\n"
        "os.remove(sys.argv[2]); os.mkfifo(sys.argv[2])\n"  # opening a pipe without a writer would wait for ever
        "try: load_with_notes(sys.argv[1])\n"
        "except DataError as error: print(error.message)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(other)], capture_output=True, text=True, timeout=20
    )
    assert "'/v' is a virtual data set" in done.stdout, done.stderr
