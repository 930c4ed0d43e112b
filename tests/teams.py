"""Runs a command of `snet` on several processes: forks of this one, which has imported all, as a launcher would."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from snet_cli import distributed as processes
from snet_cli.cli.main import main

HANGS = 45.0
"""Seconds after which a process tells where each of its threads is; tests wait 60 for it."""


class Member(NamedTuple):
    """What one process did: its exit code (negative: the signal that ended it), stdout and stderr."""

    code: int
    out: str
    err: str


class Team:
    """Processes that have been started with one command.

    Parameters
    ----------
    args : sequence
        What each rank does: the words of a command, or a function that returns an exit code.
    environment : dict, optional
        Further variables, as a launcher sets them.
    """

    def __init__(
        self, args: Sequence[Sequence[object] | Callable[[], int]], environment: dict[str, str] | None = None
    ) -> None:
        self.size = len(args)
        place = {"WORLD_SIZE": str(self.size), "LOCAL_WORLD_SIZE": str(self.size), "MASTER_ADDR": "127.0.0.1"}
        place |= {"MASTER_PORT": str(free_port()), **(environment or {})}
        self.children = [self._start(rank, words, place) for rank, words in enumerate(args)]

    def _start(self, rank: int, task: Sequence[object] | Callable[[], int], place: dict[str, str]) -> int:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forks and threads: the child computes on one
            child = os.fork()
        if child == 0:
            code = 99
            try:
                os.environ.update({**place, "RANK": str(rank), "LOCAL_RANK": str(rank)})
                torch.set_num_threads(1)
                with open(f"out.{rank}", "w") as out, open(f"err.{rank}", "w") as err:
                    sys.stdout, sys.stderr = out, err
                    os.dup2(err.fileno(), 2)
                    faulthandler.dump_traceback_later(HANGS, file=err)  # for the message of the test that kills it
                    code = task() if callable(task) else main([str(word) for word in task])
                    out.flush()
                    err.flush()
            finally:
                os._exit(code)
        return child

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to one process."""
        os.kill(self.children[rank], number)

    def connected(self) -> bool:
        """Whether the processes have found each other: one thread of gloo then waits in each."""
        return all(len(list(Path(f"/proc/{child}/task").iterdir())) > 2 for child in self.children)

    def running(self) -> int:
        """How many have not ended."""
        return sum(os.waitid(os.P_PID, c, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None for c in self.children)

    def wait(self, limit: float = 60.0) -> list[Member]:
        """What all did, once they have ended; those that have not in time are killed, and fail the test."""
        end = time.monotonic() + limit
        while self.running() and time.monotonic() < end:
            time.sleep(0.005)
        late = self.running()
        if late:
            for child in self.children:
                os.kill(child, signal.SIGKILL)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in self.children]
        members = [Member(c, Path(f"out.{k}").read_text(), Path(f"err.{k}").read_text()) for k, c in enumerate(codes)]
        assert not late, f"{late} processes did not end within {limit} s: {members}"
        return members


def answers(size: int, ask: Callable[[processes.Team], Any], limit: float = 60.0) -> list[Any]:
    """What a function of the team returns on each rank, through JSON."""

    def task() -> int:
        with processes.joined_processes(limit=limit) as team:
            print(json.dumps(ask(team)))
        return 0

    members = Team([task] * size).wait(limit)
    assert [member.code for member in members] == [0] * size, members
    return [json.loads(member.out) for member in members]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def together(size: int, *args: object, limit: float = 60.0, environment: dict[str, str] | None = None) -> list[Member]:
    """Run one command on several processes."""
    return Team([args] * size, environment).wait(limit)
