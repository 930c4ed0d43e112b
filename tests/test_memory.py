"""What will not fit into the memory is refused with the figure before it is allocated, never with a traceback."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from snet_cli.cli import main as program
from snet_cli.data.options import CommonOptions
from snet_cli.data.trajectory_file import save_trajectories
from snet_cli.errors import UsageError
from snet_cli.workflows import memory, memory_limits
from tests.command import Snet
from tests.training_cases import spirals

WIDE = ("--model", "mlp", "--set", "model.hidden=[4096,4096,4096,4096,4096,4096,4096,4096]")

SMALL = ("--model", "mlp", "--set", "model.hidden=[2]", "--order", 5, "--elements", 1)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (
            ("simulate", "vehicle", "-o", "o.h5", "--trajectories", 10**3, "--samples", 10**7),
            "the simulation needs about 6.24e+03 GB",
        ),
        (("fit", "a.h5", "-o", "o.h5", *WIDE), "the model needs about 9"),
        (("fit", "a.h5", "-o", "o.h5", "--order", 100, "--elements", 10**5, "--max-memory", "1GB"), "step 0 needs"),
        (("fit", "a.h5", "-o", "o.h5", *SMALL, "--max-memory", "20kB"), "training needs"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_figure(snet: Snet, words: tuple[object, ...], what: str) -> None:
    save_trajectories("a.h5", spirals(2, 20))
    ran = snet(*words, *(() if "--max-memory" in words else ("--max-memory", "64GB")))
    assert ran.code == 2, ran.err
    assert what in ran.err
    assert "of memory, more than the" in ran.err
    assert "--max-memory" in ran.err
    assert os.listdir() == ["a.h5"]


def test_the_smallest_limit_is_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 3000000 kB\n",
        "/proc/self/status": "VmSize:\t 1000000 kB\n",
        "/proc/self/cgroup": "0::/mine\n",
        "/sys/fs/cgroup/mine/memory.max": "2000000000\n",
        "/sys/fs/cgroup/mine/memory.current": "1500000000\n",
        "/sys/fs/cgroup/mine/memory.stat": "anon 5\ninactive_file 100000000\n",
    }
    monkeypatch.setattr(memory_limits, "_read", lambda path: files.get(str(path), ""))
    names = ["this process's group (cgroup) has left", "limit on address space (ulimit -v) leaves", "this machine has"]
    sizes = ["600 MB", "1.05 GB", "3.07 GB"]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (2**31 - 73741824, 0))
    for name, size in zip(names, sizes, strict=True):
        with pytest.raises(UsageError, match="the work needs about 1e") as caught:
            memory.require_memory("the work", 1e15, CommonOptions())
        assert f"more than the {size} that" in caught.value.message
        assert name in caught.value.message
        if name.startswith("this process"):
            del files["/sys/fs/cgroup/mine/memory.max"]
        else:
            monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, 0))
    files.clear()
    memory.require_memory("the work", 1e15, CommonOptions())  # a system that does not tell
    with pytest.raises(UsageError, match=r"more than the 1 GB of --max-memory\."):
        memory.require_memory("the work", 1e15, CommonOptions(max_memory=10**9))


def test_too_little_address_space_is_told_before_any_library_is_loaded(tmp_path) -> None:
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (280_000_000,) * 2)\n"
    code += "from snet_cli.cli.main import main; sys.exit(main(['info', 'a.h5']) + 10 * main(['fit', 'a.h5']))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert ran.returncode == 22, ran.stderr
    assert ran.stderr.count("the limit on address space is 0.28 GB, and snet ") == 2
    assert ran.stderr.count("Raise it: ulimit -v ") == 2
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_memory_that_ends_is_an_error_of_one_line(
    snet: Snet, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def end(*_: object) -> int:
        raise error

    monkeypatch.setattr(program, "_run", end)
    ran = snet("info", "a.h5")
    assert (ran.code, ran.err.splitlines()[0]) == (6, "error: the memory does not suffice.")
