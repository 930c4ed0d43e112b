"""Several processes on one task: each has trajectories of its own, and only sums over all of them travel.

`joined_processes` makes a team of the processes that a launcher started: `Processes`, or `Alone` where there is one,
whose sums are the identity and which imports nothing. The team is handed down as an argument. R, L, their gradients and
the normal equations of θ are sums over trajectories, so that a rank adds up its own and every rank then takes the same
step from the same numbers::

    rank 0   trajectories 0 … b_1    X_0 stays here  ┐
    rank 1   trajectories b_1 … b_2  X_1 stays here  ├ Σ loss, Σ gradient (or Σ Schur complement) ─> the same θ on all
    rank 2   trajectories b_2 … B    X_2 stays here  ┘

Rank 0 leads: it prints and writes. Every operation of a team is collective: all ranks have to call it, in the same
order. Where there are many trajectories a process has several `lanes`, so that sums do not depend on the number of
processes.
"""

from snet_cli.distributed.alone import ALONE, Alone
from snet_cli.distributed.lanes import Lane, in_lanes, lanes_for
from snet_cli.distributed.place import Place, place_in
from snet_cli.distributed.processes import Processes, joined_processes

Team = Alone | Processes | Lane

__all__ = [
    "ALONE",
    "Alone",
    "Lane",
    "Place",
    "Processes",
    "Team",
    "in_lanes",
    "joined_processes",
    "lanes_for",
    "place_in",
]
