"""Where this process stands among those that a launcher started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from snet_cli.errors import UsageError


@dataclass(frozen=True)
class Place:
    """Where this process stands among those that the launcher started.

    Attributes
    ----------
    rank, size : int
        Number of this process, and of all.
    local_rank, local_size : int
        The same on this machine.
    restarts : int
        How often the launcher has started all of them anew (``torchrun --max-restarts``).
    in_launcher : bool
        Whether the place where they meet is the launcher, which outlives them; else it is rank 0.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    restarts: int = 0
    in_launcher: bool = False


def place_in(environment: Mapping[str, str]) -> Place:
    """What the launcher says in the environment; one process where it says nothing.

    Raises
    ------
    UsageError
        If its numbers make no sense.
    """
    if any(environment.get(name, "") == "" for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")):
        return Place()
    try:
        rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local_rank = int(environment.get("LOCAL_RANK", rank))
        local_size = int(environment.get("LOCAL_WORLD_SIZE", size))
        restarts = int(environment.get("TORCHELASTIC_RESTART_COUNT", 0))
    except ValueError:
        rank = size = local_rank = local_size = restarts = -1
    if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
        raise UsageError(
            f"RANK={environment['RANK']} and WORLD_SIZE={environment['WORLD_SIZE']} are not the place of a process.",
            "Start several processes with torchrun, or unset these variables.",
        )
    in_launcher = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Place(rank, size, local_rank, local_size, restarts, in_launcher)
