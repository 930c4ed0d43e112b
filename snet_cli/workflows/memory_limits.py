"""How much memory there is, and the refusal of what does not fit; for commands that never import torch as well.

The system lets a process ask for more than it has, and kills it when it takes it; so what a run will take is estimated
from its sizes (`workflows.memory`, for what computes) and refused, with the figure, where it cannot fit.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Iterator
from pathlib import Path

from snet_cli.data.options import CommonOptions
from snet_cli.errors import UsageError

FEWER = "Use fewer trajectories, samples, elements or weights, or raise --max-memory where there is more."


def require_memory(what: str, needed: float, common: CommonOptions, hint: str = FEWER) -> None:
    """Refuse work that cannot fit.

    Parameters
    ----------
    what : str
        Subject of the message.
    needed : float
        Bytes that it will take beside what the process has.
    hint : str
        What to do about it.

    Raises
    ------
    UsageError
    """
    free, reason = min(limits(common.max_memory))
    if needed > free:
        raise UsageError(
            f"{what} needs about {size_text(needed)} of memory, more than the {size_text(free)} {reason}.", hint
        )


def resident() -> float:
    """Bytes that this process has in memory now."""
    return _kilobytes(_read("/proc/self/status"), "VmRSS:")


def free_memory(common: CommonOptions) -> float:
    """Bytes that may still be taken: `--max-memory`, and what the machine and the limits of the process leave."""
    return min(limits(common.max_memory))[0]


def left(limit: float, common: CommonOptions) -> float:
    """Bytes of a limit that the process may take beside what it has; what the machine has left is left already."""
    return max(limit - (resident() if common.max_memory is not None else 0.0), 0.0)


def limits(max_memory: int | None) -> Iterator[tuple[float, str]]:
    """Bytes that may be taken, each with what limits them."""
    if max_memory is not None:
        yield float(max_memory), "of --max-memory"
    yield math.inf, "that there are"
    text = _read("/proc/meminfo")
    if "MemAvailable:" in text:
        yield _kilobytes(text, "MemAvailable:"), "that this machine has left"
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if space != resource.RLIM_INFINITY:
        used = _kilobytes(_read("/proc/self/status"), "VmSize:")
        yield max(space - used, 0.0), "that the limit on address space (ulimit -v) leaves"
    group = Path("/sys/fs/cgroup" + _read("/proc/self/cgroup").rpartition("::")[2].strip())
    most, used_by_group = _read(group / "memory.max").strip(), _read(group / "memory.current").strip()
    if most.isdigit() and used_by_group.isdigit():
        cached = [
            line.split()[1] for line in _read(group / "memory.stat").splitlines() if line.startswith("inactive_f")
        ]
        free = int(most) - int(used_by_group) + sum(map(int, cached))
        yield float(max(free, 0)), "that this process's group (cgroup) has left"


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (OSError, ValueError):  # another system
        return ""


def _kilobytes(text: str, name: str) -> float:
    words = text.partition(name)[2].split()
    return 1024.0 * float(words[0]) if words else 0.0


def size_text(size: float) -> str:
    """Bytes for people: ``1.2 GB``, ``350 MB``."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
