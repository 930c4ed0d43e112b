"""Threads, device and memory of this process."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path
from typing import Literal

import torch

from snet_cli.distributed import Place
from snet_cli.errors import UsageError

SMALL_WORK = 1_000_000
"""Numbers per evaluation of f up to which one thread is as fast as several, and far faster on a busy machine: waking
threads for an operation of microseconds costs more than the operation."""


def set_threads(threads: int | None, work: int, processes: int = 1) -> None:
    """Use this many threads; None: one for small work, else all cores. Depends on the data alone, not on the load.

    Parameters
    ----------
    work : int
        Numbers that one evaluation of f touches: points times the widest layer.
    processes : int
        Processes that share this machine's cores, and the work.
    """
    torch.set_num_threads(threads or (1 if work <= SMALL_WORK * processes else cores_of(processes)))


def cores_of(processes: int) -> int:
    """Cores of this machine for each of the processes that share it, as far as this one is allowed to use them."""
    all_cores = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else all_cores
    return max(min(all_cores // processes, allowed), 1)


def process_started() -> float:
    """The reading that `time.perf_counter` had when this process began, as far as the system tells; else now.

    A command's time includes the second or two that its imports take.
    """
    now = time.perf_counter()
    try:
        ticks = float(Path("/proc/self/stat").read_text("utf-8").rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text("utf-8").split()[0])
        return now - max(up - ticks / os.sysconf("SC_CLK_TCK"), 0.0)
    except (OSError, ValueError, IndexError):
        return now


def choose_device(name: Literal["auto", "cpu", "cuda"], place: Place | None = None) -> torch.device:
    """The device; `auto` takes CUDA where there is one, each process of a machine its own.

    Only `fit` has more to say of `auto` (`device_choice`): the rows of `compare` stay on one device, so that they
    compare methods, and forecasts are too short to be tried first.

    Raises
    ------
    UsageError
        If CUDA is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this machine, or this torch, has no CUDA device.", "Use --device cpu.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device("cuda", place.local_rank) if name == "cuda" and place is not None else torch.device(name)


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, in 10^6 bytes.

    Linux counts in `getrusage` what the process was before `exec`, a copy of its parent, and in /proc what it is now.
    """
    try:
        status = Path("/proc/self/status").read_text("utf-8")
        return float(status.partition("VmHWM:")[2].split()[0]) * 1024.0 / 1e6
    except (OSError, ValueError, IndexError):
        pass  # another system, whose `getrusage` is right: kB, or bytes on macOS
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1.0 if sys.platform == "darwin" else 1024.0) / 1e6
