"""What a fit costs on more trajectories and processes than there are here: measured on this machine, then computed.

`python -m tests.benchmarks.sizing` prints the table of README, "Larger than this machine". Measured are

    c      processor seconds per trajectory and iteration of one process of one thread (vehicle, 25 samples, p = 14,
           hidden 16), which are seconds where nothing else runs
    m      bytes of the arrays that training keeps per trajectory
    a, b   seconds per message and per byte of an all-reduce between two processes of this machine (gloo)

and computed is, for B trajectories on R processes, an iteration as

    c B / R + (messages) (2 log2 R a + 2 (R - 1) / R n b),     n bytes to a message,

recursive halving for the latency, every byte twice over the slowest link. A network has other a and b than loopback.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from snet_cli.distributed import Alone, Processes
from snet_cli.training.problem import Problem
from snet_cli.training.relaxed import RelaxedProblem
from snet_cli.workflows.methods import build_training
from snet_cli.workflows.training_plan import Ingredients
from tests.benchmarks.vehicles import METHODS, timed, vehicles
from tests.teams import answers

TRAJECTORIES = (10**4, 10**6, 10**8)
PROCESSES = (1, 64, 1024)

MEASURED_ON = 2000
"""Trajectories: enough that what does not grow with them does not count."""

ROUNDS = 2
"""Runs of each method; the fastest one counts."""

SMALL, LARGE = 1_000, 4_000_000
"""Numbers in the two messages that are timed."""


class Traffic(NamedTuple):
    """Messages of an iteration, and the bytes of all of them."""

    messages: int
    size: int


def traffic(method: str, weights: int) -> Traffic:
    """What an iteration sends: loss and gradient for each L-BFGS step, or the Schur complement; a few flags."""
    gradient, flags = 8 * (weights + 1), 16
    if method == "delta":
        return Traffic(2, gradient + flags)
    if method == "alpha":  # ten steps on θ, the misfit, and R
        return Traffic(12, 10 * gradient + 2 * flags)
    return Traffic(5, 8 * weights * (weights + 2) + 4 * flags)  # S, two gradients; losses, promise, flags


def bytes_of(value: Any, seen: set[int]) -> int:
    """Of all arrays below a value, each once."""
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        known = storage.data_ptr() in seen
        seen.add(storage.data_ptr())
        return 0 if known else storage.nbytes()
    if isinstance(value, np.ndarray):
        known = value.__array_interface__["data"][0] in seen
        seen.add(value.__array_interface__["data"][0])
        return 0 if known else value.nbytes
    if isinstance(value, list | tuple):
        return sum(bytes_of(part, seen) for part in value)
    if is_dataclass(value):
        return sum(bytes_of(getattr(value, field.name), seen) for field in fields(value))
    if type(value).__module__.startswith("snet_cli.") and hasattr(value, "__dict__"):
        return sum(bytes_of(part, seen) for part in vars(value).values())
    return 0


def kept_bytes(parts: Ingredients, method: str) -> float:
    """Bytes per trajectory that training keeps: the problem, what is computed from it once, X, the samples."""
    training = build_training(method, parts)
    seen: set[int] = set()
    kept = [value for value in vars(training.method).values() if isinstance(value, Problem | RelaxedProblem)]
    rest = [value for value in vars(training.method).values() if not isinstance(value, Problem | RelaxedProblem)]
    return (bytes_of(kept, seen) + bytes_of(rest, seen)) / len(parts.data.train)


def message_seconds(team: Alone | Processes) -> list[float]:
    """Seconds of a sum of `SMALL` and of `LARGE` numbers; the fastest counts, because other programs only take time."""
    found = []
    for size, count in ((SMALL, 1000), (LARGE, 20)):
        numbers, best = torch.zeros(size, dtype=torch.float64), math.inf
        for _ in range(count):
            begin = time.perf_counter()
            team.sum(numbers)
            best = min(best, time.perf_counter() - begin)
        found.append(best)
    return found


def amount(value: float, units: str = "B kB MB GB TB PB") -> str:
    """``1.2 MB``."""
    names = units.split()
    power = min(int(math.log10(max(value, 1.0)) // 3), len(names) - 1)
    return f"{value / 1000**power:.3g} {names[power]}"


def main() -> None:
    """Measure, compute, print."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        parts = vehicles(Path(folder), MEASURED_ON)
        weights = sum(p.numel() for p in parts.setup.trained.model.parameters())
        cost, kept = {}, {}
        for method in METHODS:
            runs = [answers(1, lambda team, method=method: timed(parts, method, team), 600) for _ in range(ROUNDS)]
            cost[method] = min(run[0]["processor"] for run in runs) / MEASURED_ON
            kept[method] = kept_bytes(parts, method)
        small, large = answers(2, message_seconds)[0]
        os.chdir("/")
    each_byte = (large - small) / (8 * (LARGE - SMALL))
    latency = max(small - 8 * SMALL * each_byte, 0.0)
    print(f"{weights} weights; all-reduce of two processes: {1e6 * latency:.0f} µs + {1e9 * each_byte:.2g} ns a byte\n")
    columns = [f"{b:.0e}".replace("e+0", "e") + f" on {r}" for b in TRAJECTORIES for r in PROCESSES]
    print("| method | µs / trajectory | bytes / trajectory | on the wire | " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * (3 + len(columns)))
    for method in METHODS:
        sent = traffic(method, weights)
        seconds = []
        for b in TRAJECTORIES:
            for r in PROCESSES:
                wire = sent.messages * 2 * math.log2(r) * latency + 2 * (r - 1) / r * sent.size * each_byte
                seconds.append(f"{cost[method] * b / r + wire:.2g}")
        told = [f"{1e6 * cost[method]:.3g}", amount(kept[method]), amount(sent.size), *seconds]
        print(f"| {method} | " + " | ".join(told) + " |")


if __name__ == "__main__":
    sys.exit(main())
