import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import Snet, run_in

DEFAULT_TESTS = "not slow and not bench and not stress and not gpu"


@pytest.fixture(autouse=True, scope="session")
def heard_signals() -> Iterator[None]:
    """Signals that a shell makes its background jobs ignore are heard, as by a command in the foreground."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two workers for the default suite; timings, kills and single files have the machine for themselves."""
    whole = config.option.markexpr == DEFAULT_TESTS and not config.option.file_or_dir
    return 2 if whole and (os.cpu_count() or 1) > 1 else 0


def pytest_configure(config: pytest.Config) -> None:
    """Workers have a core each: threads that wait for each other on shared ones take several times as long."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker.startswith("gw") and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker[2:]) % len(cores)]})


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread of torch: sums in another order have other last digits, and timings are of one core."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def snet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Snet:
    """`snet` in an empty folder and a clean environment, in this process: code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("SNET_")]:
        monkeypatch.delenv(name)
    return run_in(capsys)


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is too large, and slices and blocks are small."""
    from tests.slices_cases import slice_everything

    slice_everything(monkeypatch)
